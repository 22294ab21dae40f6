#ifndef GENTRIE_SORT_ROWS_H_
#define GENTRIE_SORT_ROWS_H_

#include <functional>

#include "front_coded.h"
#include "gentrie/builder.h"

namespace gentrie {

/// Called by the calling thread with the share of the work done, 0 to 1; may throw.
using Tick = std::function<void(double)>;

/// Validates, sorts and deduplicates the rows of a source; the end token is appended to each.
/// \throws std::invalid_argument as build_trie() does
FrontCoded sort_rows(const SequenceSource& source, const BuildOptions& options, int num_threads, const Tick& tick);

}  // namespace gentrie

#endif  // GENTRIE_SORT_ROWS_H_
