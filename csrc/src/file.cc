#include "gentrie/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "gentrie/builder.h"
#include "gentrie/version.h"
#include "safetensors.h"
#include "xxhash64.h"

namespace gentrie {

namespace {

constexpr const char* kOwnPrefix = "gentrie.";
constexpr const char* kFormatKey = "gentrie.format_version";
constexpr const char* kVersionKey = "gentrie.version";
constexpr const char* kFingerprintKey = "gentrie.fingerprint";
constexpr const char* kHeaderChecksumKey = "gentrie.header_xxh64";

[[noreturn]] void fail_io(const std::string& what, const std::string& path) {
  const int code = errno;
  throw IoError(code, what + " " + path + ": " + std::strerror(code));
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_;
};

/// The header's numbers by the names they are stored under.
template <typename Header, typename Visit>
void for_each_count(Header& header, const Visit& visit) {
  visit("num_nodes", header.num_nodes);
  visit("num_sequences", header.num_leaves);
  visit("num_items", header.num_items);
  visit("num_run_tokens", header.num_run_tokens);
  visit("run_token_bits", header.run_token_bits);
  visit("run_offset_bits", header.run_offset_bits);
  visit("max_depth", header.max_depth);
  visit("max_branching", header.max_branching);
  visit("vocab_size", header.vocab_size);
  visit("end_token_id", header.end_token_id);
}

std::string dtype_of(const ArrayRef& array) {
  return (array.is_signed ? "I" : "U") + std::to_string(array.itemsize * 8);
}

std::string hex(std::uint64_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text(16, '0');
  for (int i = 15; i >= 0; --i, value >>= 4) text[static_cast<std::size_t>(i)] = kDigits[value & 15];
  return text;
}

/// Of all metadata but the checksum itself, so that no altered count or name goes unseen.
std::string header_checksum(const std::map<std::string, std::string>& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata) {
    if (key != kHeaderChecksumKey) text += key + '\0' + value + '\0';
  }
  return hex(xxhash64(text.data(), text.size()));
}

/// Writes in parts, and has the disk keep up with them, so that an interrupt never waits for long.
void write_all(int fd, const void* data, std::uint64_t length, const std::string& path,
               const std::function<void()>& poll) {
  constexpr std::uint64_t kPart = std::uint64_t{1} << 26;
  const auto* at = static_cast<const char*>(data);
  while (length > 0) {
    const ssize_t written = ::write(fd, at, std::min(length, kPart));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 || (length > kPart && ::fdatasync(fd) != 0)) fail_io("cannot write", path);
    at += written;
    length -= static_cast<std::uint64_t>(written);
    if (poll) poll();
  }
}

/// Opens a new file beside `path` under a name of its own; returns its descriptor.
int create_beside(const std::string& path, std::string* name) {
  for (int attempt = 0;; ++attempt) {
    *name = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    const int fd = ::open(name->c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return fd;
    if (errno != EEXIST) fail_io("cannot create a file beside", path);
  }
}

/// Turns a checked table of tensors into a header and arrays that a view may be made of.
class Reader {
 public:
  Reader(const char* data, std::uint64_t size, std::string path) : data_(data), size_(size), path_(std::move(path)) {}

  void read() {
    parse();
    check_version();
    for_each_count(header, [this](const char* name, auto& value) { value = count(name); });
    read_arrays();
    check_counts();
    std::array<std::uint64_t, kNumArrays> checksums{};
    for (std::size_t i = 0; i < kNumArrays; ++i) {
      const std::string key = std::string("gentrie.xxh64.") + array_name(static_cast<ArrayId>(i));
      checksums[i] = std::strtoull(own(key).c_str(), nullptr, 16);
    }
    fingerprint = own(kFingerprintKey);
    if (fingerprint != fingerprint_of(header, arrays, checksums)) fail("the fingerprint does not fit the contents");
    for (const auto& [key, value] : parsed_.metadata) {
      if (key.rfind(kOwnPrefix, 0) != 0) metadata.emplace(key, value);
    }
  }

  TrieHeader header;
  ArrayTable arrays;
  std::string fingerprint;
  std::map<std::string, std::string> metadata;

 private:
  [[noreturn]] void fail(const std::string& why) const { throw FormatError(path_ + ": " + why); }

  void parse() {
    if (size_ < 8) fail("not a gentrie file: it has " + std::to_string(size_) + " bytes");
    std::uint64_t length;
    std::memcpy(&length, data_, 8);
    if (length > std::uint64_t{100} << 20 || length < 2 || data_[8] != '{') {
      fail("not a gentrie file: it does not begin with a safetensors header");
    }
    if (length > size_ - 8) {
      fail("truncated: the header takes " + std::to_string(length) + " bytes, the file ends after " +
           std::to_string(size_ - 8));
    }
    try {
      parsed_ = parse_safetensors_header(data_ + 8, length);
    } catch (const FormatError& error) {
      fail(error.what());
    }
    is_as_written_ = write_safetensors_header(parsed_) == std::string(data_ + 8, length);
    body_ = data_ + 8 + length;
    body_size_ = size_ - 8 - length;
  }

  const std::string& own(const std::string& key) const {
    const auto found = parsed_.metadata.find(key);
    if (found == parsed_.metadata.end()) fail("the header lacks " + key);
    return found->second;
  }

  std::int64_t count(const std::string& name) const {
    const std::string& text = own(kOwnPrefix + name);
    errno = 0;
    char* end = nullptr;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (errno != 0 || text.empty() || *end != '\0' || value < -1 || value > (std::int64_t{1} << 40)) {
      fail("the header says " + name + "=" + text);
    }
    return value;
  }

  void check_version() {
    const auto version = parsed_.metadata.find(kFormatKey);
    if (version == parsed_.metadata.end()) fail("not a gentrie file: the header lacks " + std::string(kFormatKey));
    if (version->second != std::to_string(kFormatVersion)) {
      fail("format version " + version->second + ", this library (" GENTRIE_VERSION ") reads version " +
           std::to_string(kFormatVersion));
    }
    if (own(kHeaderChecksumKey) != header_checksum(parsed_.metadata)) fail("the header was altered");
    if (!is_as_written_) fail("the header was altered: it is not as this library writes it");
  }

  void read_arrays() {
    if (parsed_.tensors.size() != kNumArrays) {
      fail("has " + std::to_string(parsed_.tensors.size()) + " arrays, expected " + std::to_string(kNumArrays));
    }
    std::uint64_t offset = 0;
    for (std::size_t i = 0; i < kNumArrays; ++i) {
      const TensorEntry& tensor = parsed_.tensors[i];
      const std::string name = array_name(static_cast<ArrayId>(i));
      if (tensor.name != name) fail("array " + std::to_string(i) + " is " + tensor.name + ", expected " + name);
      ArrayRef& array = arrays[i];
      if (!parse_dtype(tensor.dtype, &array)) fail("array " + name + " has dtype " + tensor.dtype);
      array.count = static_cast<std::uint64_t>(count("length." + name));
      array.data = body_ + offset;
      if (tensor.shape.size() != 1 || tensor.begin != offset || tensor.end != offset + array.padded_nbytes() ||
          tensor.shape[0] * array.itemsize != array.padded_nbytes()) {
        fail("array " + name + " is not where its length says");
      }
      offset = tensor.end;
    }
    if (offset != body_size_) {
      fail((body_size_ < offset ? "truncated" : "longer than it says") + std::string(": its arrays take ") +
           std::to_string(offset) + " bytes, the file has " + std::to_string(body_size_));
    }
  }

  static bool parse_dtype(const std::string& dtype, ArrayRef* array) {
    for (const std::uint32_t itemsize : {1U, 2U, 4U, 8U}) {
      for (const bool is_signed : {false, true}) {
        array->itemsize = itemsize;
        array->is_signed = is_signed;
        if (dtype_of(*array) == dtype) return true;
      }
    }
    return false;
  }

  void check_array(ArrayId id, std::initializer_list<std::uint32_t> itemsizes, bool is_signed, std::uint64_t length) {
    const ArrayRef& array = arrays[static_cast<std::size_t>(id)];
    bool fits = false;
    for (const std::uint32_t itemsize : itemsizes) fits = fits || array.itemsize == itemsize;
    if (!fits || array.is_signed != is_signed || array.count != length) {
      fail(std::string("array ") + array_name(id) + " is " + dtype_of(array) + "[" + std::to_string(array.count) +
           "], which does not fit the header");
    }
  }

  /// Every length that a lookup relies on, so that bounded indices stay inside the arrays.
  void check_counts() {
    constexpr std::int64_t kMaxIndex = 0xFFFFFFFE;
    for_each_count(header, [&](const char* name, auto value) {
      if (value == static_cast<decltype(value)>(-1) && std::string(name) != "end_token_id") {
        fail(std::string("the header says ") + name + "=-1");
      }
    });
    const std::uint64_t nodes = header.num_nodes, leaves = header.num_leaves;
    if (nodes < 1 || leaves < 1 || nodes > leaves || nodes - 1 + leaves > kMaxIndex || header.num_items < leaves ||
        header.num_items > kMaxIndex || header.run_token_bits > 32 || header.run_offset_bits > 32 ||
        header.vocab_size < 1 || header.vocab_size > 0x7FFFFFFF || header.end_token_id >= header.vocab_size) {
      fail("the header's counts contradict each other");
    }
    const std::uint64_t edges = nodes - 1 + leaves, targets = nodes + leaves;
    const std::uint64_t tokens = arrays[static_cast<std::size_t>(ArrayId::kVocabulary)].count;
    if (tokens < 1 || tokens > kMaxIndex) fail("the vocabulary has " + std::to_string(tokens) + " tokens");
    check_array(ArrayId::kVocabulary, {4}, true, tokens);
    check_array(ArrayId::kEdgeIndptr, {4}, false, nodes + 1);
    check_array(ArrayId::kEdgeTokens, {1, 2, 4}, false, edges);
    check_array(ArrayId::kEdgeToNode, {8}, false, RankedBitmap::num_words(edges));
    check_array(ArrayId::kLeafBegin, {4}, false, nodes);
    check_array(ArrayId::kLeafPrefix, {4}, false, nodes + 1);
    check_array(ArrayId::kRunTokens, {4}, false,
                PackedView::num_words(header.num_run_tokens, static_cast<std::uint32_t>(header.run_token_bits)));
    check_array(ArrayId::kRunBlocks, {8}, false, targets / TrieView::kRunBlock + 1);
    check_array(ArrayId::kRunOffsets, {4}, false,
                PackedView::num_words(targets + 1, static_cast<std::uint32_t>(header.run_offset_bits)));
    check_array(ArrayId::kItemIndptr, {4}, false, header.num_items == leaves ? 0 : leaves + 1);
    check_array(ArrayId::kItemIds, {4, 8}, true, header.num_items);
  }

  const char* data_;
  std::uint64_t size_;
  std::string path_;
  SafetensorsHeader parsed_;
  const char* body_ = nullptr;
  std::uint64_t body_size_ = 0;
  bool is_as_written_ = false;
};

/// Reads a mapping into memory. Where the system cannot do so at once a byte of each page is asked for.
void prefault(const char* data, std::uint64_t size) {
#ifdef MADV_POPULATE_READ
  if (::madvise(const_cast<char*>(data), size, MADV_POPULATE_READ) == 0) return;
#endif
  ::madvise(const_cast<char*>(data), size, MADV_WILLNEED);
  constexpr std::uint64_t kPage = 4096;
  for (std::uint64_t at = 0; at < size; at += kPage) static_cast<void>(*static_cast<const volatile char*>(data + at));
}

}  // namespace

void save_trie(const Trie& trie, const std::string& path, const std::map<std::string, std::string>& metadata,
               const std::function<void()>& poll) {
  SafetensorsHeader header;
  for (const auto& [key, value] : metadata) {
    if (key.rfind(kOwnPrefix, 0) == 0) {
      throw std::invalid_argument("metadata key '" + key + "': keys that begin with '" + kOwnPrefix + "' are ours");
    }
    header.metadata.emplace(key, value);
  }
  header.metadata[kFormatKey] = std::to_string(kFormatVersion);
  header.metadata[kVersionKey] = GENTRIE_VERSION;
  header.metadata[kFingerprintKey] = trie.fingerprint();
  for_each_count(trie.header(), [&](const char* name, auto value) {
    header.metadata[std::string(kOwnPrefix) + name] = std::to_string(value);
  });
  const std::array<std::uint64_t, kNumArrays> checksums = checksums_of(trie.arrays(), default_num_threads());
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < kNumArrays; ++i) {
    const ArrayRef& array = trie.arrays()[i];
    const std::string name = array_name(static_cast<ArrayId>(i));
    header.metadata["gentrie.length." + name] = std::to_string(array.count);
    header.metadata["gentrie.xxh64." + name] = hex(checksums[i]);
    header.tensors.push_back(
        {name, dtype_of(array), {array.padded_nbytes() / array.itemsize}, offset, offset + array.padded_nbytes()});
    offset += array.padded_nbytes();
  }
  header.metadata[kHeaderChecksumKey] = header_checksum(header.metadata);
  const std::string text = write_safetensors_header(header);
  const std::uint64_t length = text.size();

  std::string temporary;
  const FileDescriptor created(create_beside(path, &temporary));
  try {
    write_all(created.get(), &length, sizeof length, path, poll);
    write_all(created.get(), text.data(), length, path, poll);
    for (const ArrayRef& array : trie.arrays()) write_all(created.get(), array.data, array.padded_nbytes(), path, poll);
    if (::fsync(created.get()) != 0) fail_io("cannot write", path);
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail_io("cannot rename to", path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  // The rename is durable once the folder is; some file systems cannot sync one, and the file is whole either way.
  const std::size_t slash = path.rfind('/');
  const FileDescriptor folder(::open(slash == std::string::npos ? "." : path.substr(0, slash + 1).c_str(), O_RDONLY));
  if (folder.valid()) ::fsync(folder.get());
}

std::shared_ptr<const Trie> load_trie(const std::string& path, const LoadOptions& options) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) fail_io("cannot open", path);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) fail_io("cannot read", path);
  if (!S_ISREG(status.st_mode)) {
    errno = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    fail_io("cannot read", path);
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size == 0) throw FormatError(path + ": not a gentrie file: it is empty");
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) fail_io("cannot map", path);
  const std::shared_ptr<const void> mapping(mapped, [size](void* data) { ::munmap(data, size); });

  Reader reader(static_cast<const char*>(mapped), size, path);
  reader.read();
  auto trie = std::make_shared<const Trie>(reader.header, reader.arrays, mapping, reader.fingerprint, reader.metadata);
  if (options.prefault) prefault(static_cast<const char*>(mapped), size);
  if (options.verify == Verify::kAlways || (options.verify == Verify::kAuto && size < kAutoVerifyBytes)) {
    try {
      verify_trie(*trie, options.num_threads);
    } catch (const FormatError& error) {
      throw FormatError(path + ": " + error.what());
    }
  }
  return trie;
}

}  // namespace gentrie
