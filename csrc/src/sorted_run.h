#ifndef GENTRIE_SORTED_RUN_H_
#define GENTRIE_SORTED_RUN_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "front_coded.h"

namespace gentrie {

/// Segments in a file without a name, which the system removes however the process ends.
class SpillFile {
 public:
  /// \throws IoError
  explicit SpillFile(const std::string& folder);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  /// Where the segment lies. Any number of threads may write and read. \throws IoError
  std::uint64_t write(const Segment& segment);
  Segment read(std::uint64_t place) const;

 private:
  std::string folder_;
  int file_ = -1;
  std::mutex mutex_;
  std::uint64_t size_ = 0;
};

/// A sorted chunk, its segments in memory or in a file of their own.
class SortedRun {
 public:
  /// Takes over a chunk; spills it if `spill_folder` is not empty.
  SortedRun(FrontCoded chunk, const std::string& spill_folder);

  const std::vector<Token>& vocabulary() const { return chunk_.vocabulary; }
  std::uint64_t max_length() const { return chunk_.max_length; }
  std::uint64_t num_segments() const { return firsts_.size(); }
  std::uint64_t num_sequences() const { return num_sequences_; }
  /// Vocabulary indices of a segment's first sequence.
  const std::vector<std::uint32_t>& first_sequence(std::uint64_t segment) const { return firsts_[segment]; }
  std::shared_ptr<const Segment> segment(std::uint64_t segment) const;
  bool is_in_memory() const { return file_ == nullptr; }
  /// The chunk back; only where it is in memory.
  FrontCoded release() && { return std::move(chunk_); }

 private:
  FrontCoded chunk_;
  std::vector<std::vector<std::uint32_t>> firsts_;
  std::uint64_t num_sequences_ = 0;
  std::unique_ptr<SpillFile> file_;
  std::vector<std::uint64_t> places_;  ///< of each segment in the file
};

}  // namespace gentrie

#endif  // GENTRIE_SORTED_RUN_H_
