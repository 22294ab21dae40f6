#ifndef GENTRIE_LAYOUT_H_
#define GENTRIE_LAYOUT_H_

#include <memory>

#include "front_coded.h"
#include "gentrie/trie.h"
#include "sort_rows.h"

namespace gentrie {

/// Lays sorted sequences, which it takes over, out as the arrays that view.h describes.
/// \throws std::invalid_argument if there are more of something than its index can count; MemoryLimitError
std::shared_ptr<const Trie> lay_out(FrontCoded catalog, const BuildOptions& options, int num_threads,
                                    MemoryBudget* budget, const Tick& tick);

}  // namespace gentrie

#endif  // GENTRIE_LAYOUT_H_
