#include "gentrie/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "gentrie/builder.h"
#include "gentrie/huge_pages.h"
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
  Xxhash64 hash;
  for (const auto& [key, value] : metadata) {
    if (key == kHeaderChecksumKey) continue;
    hash.update(key.c_str(), key.size() + 1);
    hash.update(value.c_str(), value.size() + 1);
  }
  return hex(hash.digest());
}

/// Writes in parts, and has the disk keep up with them, so that an interrupt never waits for long.
void write_all(int fd, const void* data, std::uint64_t length, const std::string& path, const Poll& poll) {
  constexpr std::uint64_t kPart = std::uint64_t{1} << 23;
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

/// The folder of a path, with the slash behind it where it names one.
std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

/// Where a path leads if its last part is a symbolic link, which may lead to nothing yet.
std::string followed(std::string path) {
  constexpr int kMaxLinks = 40;
  for (int link = 0; link < kMaxLinks; ++link) {
    char target[4096];
    const ssize_t length = ::readlink(path.c_str(), target, sizeof target);
    if (length < 0) return path;  // no link
    if (static_cast<std::size_t>(length) == sizeof target) break;
    const std::string to(target, static_cast<std::size_t>(length));
    path = to[0] == '/' ? to : folder_of(path) + to;
  }
  errno = ELOOP;
  fail_io("cannot follow", path);
}

constexpr const char* kTemporarySuffix = ".tmp-";

/// Whether both name the file that is open.
bool is_at(int fd, const std::string& name) {
  struct stat open{}, named{};
  return ::fstat(fd, &open) == 0 && ::lstat(name.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
         open.st_ino == named.st_ino;
}

/// A new file beside the one that it will replace, under a name of its own; removed unless that happens. It is locked
/// as long as its writer lives, by which others see that it is not abandoned.
class Temporary {
 public:
  explicit Temporary(std::string path) : path_(std::move(path)) {
    struct stat old{};
    replaces_ = ::stat(path_.c_str(), &old) == 0;
    if (replaces_ && !S_ISREG(old.st_mode)) {
      errno = S_ISDIR(old.st_mode) ? EISDIR : EINVAL;
      fail_io("cannot replace", path_);
    }
    remove_abandoned();
    create();
    if (!replaces_) return;
    // Readable by whom the old one was; where it cannot be given to the same owner, the mode still holds.
    struct stat made{};
    if (::fstat(fd_, &made) == 0 && (made.st_uid != old.st_uid || made.st_gid != old.st_gid)) {
      static_cast<void>(::fchown(fd_, old.st_uid, old.st_gid) == 0 || ::fchown(fd_, ~uid_t{0}, old.st_gid) == 0);
    }
    if (::fchmod(fd_, old.st_mode & 0777) != 0) {
      const int code = errno;
      discard();
      errno = code;
      fail_io("cannot set the permissions of a file beside", path_);
    }
  }
  ~Temporary() { discard(); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  int fd() const { return fd_; }
  void replace() {
    if (::rename(name_.c_str(), path_.c_str()) != 0) fail_io("cannot rename to", path_);
    name_.clear();
  }

 private:
  void create() {
    for (int attempt = 0;; ++attempt) {
      name_ = path_ + kTemporarySuffix + std::to_string(::getpid()) + "-" + std::to_string(attempt);
      fd_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, replaces_ ? 0600 : 0666);
      if (fd_ >= 0) {
        // Whoever cleans up may have seen it before it was locked; where files cannot be locked nobody cleans up.
        const bool is_taken = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (!is_taken && is_at(fd_, name_)) return;
        ::close(fd_);
      } else if (errno != EEXIST) {
        fail_io("cannot create a file beside", path_);
      }
    }
  }

  /// Removes what writers of this path that were killed have left.
  void remove_abandoned() const {
    const std::string folder = folder_of(path_), begin = path_.substr(folder.size()) + kTemporarySuffix;
    const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(folder.empty() ? "." : folder.c_str()), ::closedir);
    if (entries == nullptr) return;
    while (const dirent* entry = ::readdir(entries.get())) {
      const std::string base = entry->d_name;
      if (base.rfind(begin, 0) != 0 || base.find_first_not_of("0123456789-", begin.size()) != std::string::npos)
        continue;
      const std::string name = folder + base;
      const FileDescriptor file(::open(name.c_str(), O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
      if (file.valid() && ::flock(file.get(), LOCK_EX | LOCK_NB) == 0 && is_at(file.get(), name))
        ::unlink(name.c_str());
    }
  }

  void discard() {
    if (!name_.empty()) ::unlink(name_.c_str());
    name_.clear();
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  std::string path_, name_;
  bool replaces_ = false;
  int fd_ = -1;
};

/// Turns a checked table of tensors into a header and arrays that a view may be made of.
class Reader {
 public:
  Reader(const char* data, std::uint64_t size, std::string path, const Poll& poll)
      : data_(data), size_(size), path_(std::move(path)), poll_(poll) {}

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
    for (auto& [key, value] : parsed_.metadata) {
      if (key.rfind(kOwnPrefix, 0) != 0) metadata.emplace(key, std::move(value));
    }
  }

  TrieHeader header;
  ArrayTable arrays;
  std::string fingerprint;
  std::map<std::string, std::string> metadata;

 private:
  void poll() const {
    if (poll_) poll_();
  }
  [[noreturn]] void fail(const std::string& why) const { throw FormatError(path_ + ": " + why); }

  void parse() {
    if (size_ < 8) fail("not a gentrie file: it has " + std::to_string(size_) + " bytes");
    std::uint64_t length;
    std::memcpy(&length, data_, 8);
    if (length > kMaxHeaderBytes || length < 2 || data_[8] != '{') {
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
    poll();
    const std::string as_written = write_safetensors_header(parsed_);
    is_as_written_ = as_written.size() == length && std::memcmp(as_written.data(), data_ + 8, length) == 0;
    poll();
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
    constexpr std::uint64_t kMaxIndex = 0xFFFFFFFE;
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
    // What no array's length bounds: a vocabulary of one token needs no bits, and one sequence has no other beside it.
    const std::uint64_t max_runs = header.run_token_bits == 0 ? TrieView::kMaxSequenceLength : kMaxIndex * kMaxIndex;
    if (header.run_token_bits != bit_width(tokens - 1) || header.num_run_tokens > max_runs || header.max_depth < 1 ||
        header.max_depth > std::min(TrieView::kMaxSequenceLength, nodes + header.num_run_tokens) ||
        header.max_branching < 1 || header.max_branching > std::min(edges, tokens)) {
      fail("the header's counts contradict each other");
    }
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
  const Poll& poll_;
  SafetensorsHeader parsed_;
  const char* body_ = nullptr;
  std::uint64_t body_size_ = 0;
  bool is_as_written_ = false;
};

constexpr std::uint64_t kReadPart = std::uint64_t{1} << 23;

/// Reads a mapping into memory, part by part. Where the system cannot do so at once a byte of each page is asked for.
void prefault(const char* data, std::uint64_t size, const Poll& poll) {
  constexpr std::uint64_t kPage = 4096;
  for (std::uint64_t begin = 0; begin < size; begin += kReadPart) {
    if (poll) poll();
    const std::uint64_t length = std::min(kReadPart, size - begin);
#ifdef MADV_POPULATE_READ
    if (::madvise(const_cast<char*>(data) + begin, length, MADV_POPULATE_READ) == 0) continue;
#endif
    ::madvise(const_cast<char*>(data) + begin, length, MADV_WILLNEED);
    for (std::uint64_t at = begin; at < begin + length; at += kPage) {
      static_cast<void>(*static_cast<const volatile char*>(data + at));
    }
  }
}

std::shared_ptr<const void> mapped(int fd, std::uint64_t size, const std::string& path) {
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) fail_io("cannot map", path);
  return {data, [size](void* mapping) { ::munmap(mapping, size); }};
}

/// The file's bytes in memory of their own.
std::shared_ptr<const void> copied(int fd, std::uint64_t size, const std::string& path, const Poll& poll) {
  const std::uint64_t num_words = (size + 7) / 8;
  HugePageAllocator<std::uint64_t> allocator;
  std::uint64_t* const data = allocator.allocate(num_words);
  const std::shared_ptr<const void> owner(
      data, [num_words](std::uint64_t* block) { HugePageAllocator<std::uint64_t>().deallocate(block, num_words); });
  for (std::uint64_t at = 0; at < size;) {
    if (poll) poll();
    const ssize_t got =
        ::pread(fd, reinterpret_cast<char*>(data) + at, std::min(kReadPart, size - at), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_io("cannot read", path);
    if (got == 0) throw FormatError(path + ": truncated while it was read");
    at += static_cast<std::uint64_t>(got);
  }
  return owner;
}

FileStamp stamp_of(const struct stat& status, const std::string& path) {
  return {path,
          static_cast<std::uint64_t>(status.st_dev),
          static_cast<std::uint64_t>(status.st_ino),
          static_cast<std::uint64_t>(status.st_size),
          static_cast<std::int64_t>(status.st_mtim.tv_sec),
          static_cast<std::int64_t>(status.st_mtim.tv_nsec)};
}

}  // namespace

void save_trie(const Trie& trie, const std::string& path, const std::map<std::string, std::string>& metadata,
               const Poll& poll) {
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
  const std::array<std::uint64_t, kNumArrays> checksums = checksums_of(trie.arrays(), default_num_threads(), poll);
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
  if (length > kMaxHeaderBytes || header.metadata.size() > kMaxHeaderEntries) {
    throw std::invalid_argument("metadata makes a header of " + std::to_string(length) + " bytes and " +
                                std::to_string(header.metadata.size()) + " entries, more than the " +
                                std::to_string(kMaxHeaderBytes) + " and " + std::to_string(kMaxHeaderEntries) +
                                " that a reader takes");
  }

  const std::string target = followed(path);
  Temporary temporary(target);
  write_all(temporary.fd(), &length, sizeof length, path, poll);
  write_all(temporary.fd(), text.data(), length, path, poll);
  for (const ArrayRef& array : trie.arrays()) write_all(temporary.fd(), array.data, array.padded_nbytes(), path, poll);
  if (::fsync(temporary.fd()) != 0) fail_io("cannot write", path);
  temporary.replace();
  // The rename is durable once the folder is; some file systems cannot sync one, and the file is whole either way.
  const std::string name = folder_of(target);
  const FileDescriptor folder(::open(name.empty() ? "." : name.c_str(), O_RDONLY | O_CLOEXEC));
  if (folder.valid()) ::fsync(folder.get());
}

std::shared_ptr<const Trie> load_trie(const std::string& path, const LoadOptions& options) {
  // Without O_NONBLOCK a pipe would be waited for until somebody writes to it.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) fail_io("cannot open", path);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) fail_io("cannot read", path);
  if (!S_ISREG(status.st_mode)) {
    errno = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    fail_io("cannot read", path);
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size == 0) throw FormatError(path + ": not a gentrie file: it is empty");
  const std::shared_ptr<const void> storage =
      options.copy ? copied(file.get(), size, path, options.poll) : mapped(file.get(), size, path);
  const auto* data = static_cast<const char*>(storage.get());

  Reader reader(data, size, path, options.poll);
  reader.read();
  auto trie =
      std::make_shared<const Trie>(reader.header, reader.arrays, storage, reader.fingerprint,
                                   std::move(reader.metadata), options.copy ? FileStamp() : stamp_of(status, path));
  if (options.prefault && !options.copy) prefault(data, size, options.poll);
  if (options.verify == Verify::kAlways || (options.verify == Verify::kAuto && size < kAutoVerifyBytes)) {
    try {
      verify_trie(*trie, options.num_threads, [&options](double) {
        if (options.poll) options.poll();
      });
    } catch (const FormatError& error) {
      throw FormatError(path + ": " + error.what());
    }
  }
  return trie;
}

void check_file_unchanged(const Trie& trie) {
  const FileStamp& before = trie.file();
  struct stat status{};
  if (before.path.empty() || ::stat(before.path.c_str(), &status) != 0) return;
  const FileStamp now = stamp_of(status, before.path);
  if (now.device != before.device || now.inode != before.inode) return;
  if (now.size != before.size || now.seconds != before.seconds || now.nanoseconds != before.nanoseconds) {
    throw FormatError(before.path +
                      ": was written to since it was loaded; write a new file and rename it, as save() does"
                      ", or load a copy");
  }
}

}  // namespace gentrie
