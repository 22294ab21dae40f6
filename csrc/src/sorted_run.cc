#include "sorted_run.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "machine.h"

namespace gentrie {

namespace {

[[noreturn]] void fail_io(const std::string& what, const std::string& folder) {
  const int code = errno;
  throw IoError(code, what + " a file in " + folder + ": " + std::strerror(code));
}

/// Visits the arrays of a segment, in one order for writing and reading.
template <typename AnySegment, typename Visit>
void for_each_array(AnySegment& segment, const Visit& visit) {
  segment.shared.for_each_array(visit);
  segment.stored.for_each_array(visit);
  visit(segment.offsets);
  visit(segment.tokens);
  visit(segment.items);
  visit(segment.big_items);
  visit(segment.repeats);
}

/// pread or pwrite, again and again until all is done.
template <typename Transfer, typename Byte>
void transfer_all(const Transfer& transfer, int file, Byte* bytes, std::uint64_t count, std::uint64_t place,
                  const char* what, const std::string& folder) {
  while (count > 0) {
    const ssize_t done = transfer(file, bytes, count, static_cast<off_t>(place));
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = EIO;
    if (done <= 0) fail_io(what, folder);
    bytes += done;
    place += static_cast<std::uint64_t>(done);
    count -= static_cast<std::uint64_t>(done);
  }
}

}  // namespace

SpillFile::SpillFile(const std::string& folder) : folder_(folder) {
#ifdef O_TMPFILE
  file_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);  // never has a name that a kill could leave
  if (file_ >= 0) return;
#endif
  std::string name = folder + "/gentrie-XXXXXX";  // where the file system has no such files
  file_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (file_ < 0) fail_io("cannot create", folder_);
  ::unlink(name.c_str());
}

SpillFile::~SpillFile() { ::close(file_); }

std::uint64_t SpillFile::write(const Segment& segment) {
  std::string bytes;
  const auto append = [&bytes](const void* data, std::uint64_t count) {
    bytes.append(static_cast<const char*>(data), count);
  };
  append(&segment.first_shared, sizeof segment.first_shared);
  for_each_array(segment, [&](const auto& array) {
    const std::uint64_t count = array.size();
    append(&count, sizeof count);
    append(array.data(), count * sizeof array[0]);
  });
  const std::uint64_t length = bytes.size();
  std::uint64_t place;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    place = size_;
    size_ += sizeof length + length;
  }
  bytes.insert(0, reinterpret_cast<const char*>(&length), sizeof length);
  transfer_all(::pwrite, file_, bytes.data(), bytes.size(), place, "cannot write", folder_);
  return place;
}

Segment SpillFile::read(std::uint64_t place) const {
  std::uint64_t length;
  transfer_all(::pread, file_, reinterpret_cast<char*>(&length), sizeof length, place, "cannot read", folder_);
  std::string bytes(length, '\0');
  transfer_all(::pread, file_, bytes.data(), length, place + sizeof length, "cannot read", folder_);
  const char* at = bytes.data();
  const auto take = [&at](void* data, std::uint64_t count) {
    if (count > 0) std::memcpy(data, at, count);
    at += count;
  };
  Segment segment;
  take(&segment.first_shared, sizeof segment.first_shared);
  for_each_array(segment, [&](auto& array) {
    std::uint64_t count;
    take(&count, sizeof count);
    array.resize(count);
    take(array.data(), count * sizeof array[0]);
  });
  segment.shared.settle_width();
  segment.stored.settle_width();
  return segment;
}

SortedRun::SortedRun(FrontCoded chunk, const std::string& spill_folder) : chunk_(std::move(chunk)) {
  const PackedView view{nullptr, chunk_.token_bits()};
  for (const Segment& segment : chunk_.segments) {
    num_sequences_ += segment.num_sequences();
    PackedView tokens = view;
    tokens.words = segment.tokens.data();
    std::vector<std::uint32_t>& first = firsts_.emplace_back(segment.stored[0]);
    for (std::uint32_t i = 0; i < first.size(); ++i) first[i] = tokens[i];
  }
  if (spill_folder.empty()) return;
  file_ = std::make_unique<SpillFile>(spill_folder);
  for (const Segment& segment : chunk_.segments) places_.push_back(file_->write(segment));
  free_vector(&chunk_.segments);
  chunk_.memory.release();
}

std::shared_ptr<const Segment> SortedRun::segment(std::uint64_t segment) const {
  if (file_ != nullptr) return std::make_shared<const Segment>(file_->read(places_[segment]));
  return {std::shared_ptr<const void>(), &chunk_.segments[segment]};  // not owned: the run outlives it
}

}  // namespace gentrie
