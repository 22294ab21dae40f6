#include "gentrie/filter.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gentrie {

template <typename Allows>
std::shared_ptr<const ItemFilter> ItemFilter::make(std::shared_ptr<const Trie> trie, const Allows& allows) {
  const std::shared_ptr<ItemFilter> filter(new ItemFilter(std::move(trie)));
  const TrieView& view = filter->trie_->view();
  filter->leaf_words_.assign(RankedBitmap::num_words(view.num_leaves), 0);
  if (view.item_indptr != nullptr) filter->entry_bits_.assign(view.num_items / 64 + 1, 0);
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
    const auto [begin, end] = view.items_of_leaf(leaf);
    for (std::uint64_t entry = begin; entry < end; ++entry) {
      if (!allows(view.item_id(entry))) continue;
      ++filter->num_items_;
      filter->leaf_words_[leaf >> 5] |= std::uint64_t{1} << (leaf & 31);
      if (!filter->entry_bits_.empty()) filter->entry_bits_[entry >> 6] |= std::uint64_t{1} << (entry & 63);
    }
  }
  RankedBitmap::index(filter->leaf_words_.data(), filter->leaf_words_.size());
  return filter;
}

std::shared_ptr<const ItemFilter> ItemFilter::from_item_ids(std::shared_ptr<const Trie> trie, const std::int64_t* ids,
                                                            std::uint64_t count) {
  std::vector<std::int64_t> sorted(ids, ids + count);
  std::sort(sorted.begin(), sorted.end());
  return make(std::move(trie), [&](std::int64_t id) { return std::binary_search(sorted.begin(), sorted.end(), id); });
}

std::shared_ptr<const ItemFilter> ItemFilter::from_mask(std::shared_ptr<const Trie> trie, const std::uint8_t* mask,
                                                        std::uint64_t count) {
  return make(std::move(trie), [&](std::int64_t id) {
    if (id < 0 || static_cast<std::uint64_t>(id) >= count) {
      throw std::invalid_argument("item_filter: a boolean array is indexed by item id; it has " +
                                  std::to_string(count) + " entries, the catalog holds item id " + std::to_string(id));
    }
    return mask[id] != 0;
  });
}

std::uint32_t ItemFilter::num_items_of(std::uint32_t leaf) const {
  if (entry_bits_.empty()) return allows_leaf(leaf) ? 1 : 0;
  const auto [begin, end] = trie_->view().items_of_leaf(leaf);
  std::uint32_t allowed = 0;
  for (std::uint64_t entry = begin; entry < end; ++entry) allowed += (entry_bits_[entry >> 6] >> (entry & 63)) & 1;
  return allowed;
}

}  // namespace gentrie
