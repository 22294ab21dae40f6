#ifndef GENTRIE_BUILDER_H_
#define GENTRIE_BUILDER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "gentrie/trie.h"

namespace gentrie {

/// Rows that one trie is built from at most.
inline constexpr std::uint64_t kMaxRows = 0x7FFFFFFE;

/// Token sequences to build from, not owned. Row r is values[indptr[r] .. indptr[r + 1]), or, where `indptr` is null,
/// values[r * length .. (r + 1) * length).
struct SequenceSource {
  const void* values = nullptr;
  std::uint32_t value_bytes = 8;         ///< 4: int32, 8: int64
  const std::int64_t* indptr = nullptr;  ///< [num_rows + 1], ascending from 0
  std::uint64_t length = 0;              ///< tokens a row where indptr is null
  std::uint64_t num_rows = 0;
  std::uint64_t num_values = 0;
  const std::int64_t* item_ids = nullptr;  ///< [num_rows]; null: first_item_id + the row number
  std::int64_t first_item_id = 0;
  std::string name = "sequences";  ///< what messages call it
};

struct BuildOptions {
  std::int64_t vocab_size = 0;
  std::int64_t end_token_id = kNoToken;  ///< appended to every sequence unless kNoToken
  int num_threads = 0;                   ///< 0: default_num_threads()
  std::uint64_t memory_limit = 0;        ///< bytes to hold at most, the input apart; 0: what the system has available
  /// Called from the calling thread, some twenty times a second; may throw to stop the build.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress;
};

/// Sorts, deduplicates, validates and lays out the sequences. The result depends on the set of (sequence, item id)
/// pairs alone, not on their order or on the number of threads; a pair listed twice counts once.
/// \throws std::invalid_argument naming the row, the value and the limit: no sequences, an empty sequence, a token
///   outside [0, vocab_size), the end token inside a sequence, a sequence that is a prefix of another, too many rows.
/// \throws MemoryLimitError before more memory is taken than allowed.
std::shared_ptr<const Trie> build_trie(const SequenceSource& source, const BuildOptions& options);

/// Builds from chunks that together need not fit in memory: each is sorted and front-coded when it comes, to some ten
/// bytes an item, and finish() merges them. The trie is the one that build_trie() makes of all rows.
///
/// \code
///   ChunkedBuilder builder(options);
///   while (next_chunk(&source)) builder.add(source);
///   auto trie = builder.finish();
/// \endcode
class ChunkedBuilder {
 public:
  /// Sorted chunks are kept in a nameless file in `spill_folder`, or in memory where that is empty.
  /// \throws std::invalid_argument for options that no trie can have
  explicit ChunkedBuilder(const BuildOptions& options, std::string spill_folder = {});
  ~ChunkedBuilder();
  ChunkedBuilder(const ChunkedBuilder&) = delete;
  ChunkedBuilder& operator=(const ChunkedBuilder&) = delete;

  /// Takes in a chunk, which may have no rows; it is not needed afterwards. Throws as build_trie() does, and IoError
  /// where the file cannot be written; the chunk has not been taken in then.
  void add(const SequenceSource& chunk);
  /// Rows taken in so far.
  std::uint64_t num_rows() const;
  /// Merges the chunks; the builder is empty afterwards.
  std::shared_ptr<const Trie> finish();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// Processors this process may use: affinity and cgroup quota.
int default_num_threads();

}  // namespace gentrie

#endif  // GENTRIE_BUILDER_H_
