#ifndef GENTRIE_SORT_ROWS_H_
#define GENTRIE_SORT_ROWS_H_

#include <functional>

#include "front_coded.h"
#include "gentrie/builder.h"
#include "memory_budget.h"

namespace gentrie {

/// Called by the calling thread with the share of the work done, 0 to 1; may throw.
using Tick = std::function<void(double)>;

/// Validates, sorts and deduplicates the rows [begin, end) of a source, at least one; the end token is appended to
/// each. \throws std::invalid_argument as build_trie() does, MemoryLimitError
FrontCoded sort_rows(const SequenceSource& source, std::uint64_t begin, std::uint64_t end, const BuildOptions& options,
                     int num_threads, MemoryBudget* budget, const Tick& tick);

}  // namespace gentrie

#endif  // GENTRIE_SORT_ROWS_H_
