#ifndef GENTRIE_MERGE_RUNS_H_
#define GENTRIE_MERGE_RUNS_H_

#include <vector>

#include "front_coded.h"
#include "sort_rows.h"
#include "sorted_run.h"

namespace gentrie {

/// Merges sorted runs, at least one, into one catalog; the runs stay as they are.
/// \throws std::invalid_argument if a sequence is a prefix of another; MemoryLimitError, IoError
FrontCoded merge_runs(const std::vector<SortedRun>& runs, int num_threads, MemoryBudget* budget, const Tick& tick);

}  // namespace gentrie

#endif  // GENTRIE_MERGE_RUNS_H_
