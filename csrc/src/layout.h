#ifndef GENTRIE_LAYOUT_H_
#define GENTRIE_LAYOUT_H_

#include <memory>

#include "front_coded.h"
#include "gentrie/trie.h"
#include "sort_rows.h"

namespace gentrie {

/// Lays sorted sequences out as the arrays that view.h describes.
std::shared_ptr<const Trie> lay_out(const FrontCoded& catalog, std::int64_t vocab_size, std::int64_t end_token_id,
                                    int num_threads, const Tick& tick);

}  // namespace gentrie

#endif  // GENTRIE_LAYOUT_H_
