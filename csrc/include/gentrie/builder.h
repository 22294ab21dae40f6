#ifndef GENTRIE_BUILDER_H_
#define GENTRIE_BUILDER_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "gentrie/trie.h"

namespace gentrie {

/// Rows that one build takes at most.
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
  const std::int64_t* item_ids = nullptr;  ///< [num_rows]; null: the row number
};

struct BuildOptions {
  std::int64_t vocab_size = 0;
  std::int64_t end_token_id = kNoToken;  ///< appended to every sequence unless kNoToken
  int num_threads = 0;                   ///< 0: default_num_threads()
  /// Called now and then from the calling thread; may throw to stop the build.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress;
};

/// Sorts, deduplicates, validates and lays out the sequences. The result depends on the set of (sequence, item id)
/// pairs alone, not on their order or on the number of threads; a pair listed twice counts once.
/// \throws std::invalid_argument naming the row, the value and the limit: no sequences, an empty sequence, a token
///   outside [0, vocab_size), the end token inside a sequence, a sequence that is a prefix of another.
std::shared_ptr<const Trie> build_trie(const SequenceSource& source, const BuildOptions& options);

/// Processors this process may use: affinity and cgroup quota.
int default_num_threads();

}  // namespace gentrie

#endif  // GENTRIE_BUILDER_H_
