#ifndef GENTRIE_FILTER_H_
#define GENTRIE_FILTER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gentrie/trie.h"

namespace gentrie {

/// Which items of one trie may be given: a bitmap over the leaves (a leaf is allowed if any of its items is) with a
/// rank directory, so that the allowed sequences below any edge are counted in O(1). Immutable.
class ItemFilter {
 public:
  /// Allows the listed item ids; ids that the catalog does not hold are ignored.
  static std::shared_ptr<const ItemFilter> from_item_ids(std::shared_ptr<const Trie> trie, const std::int64_t* ids,
                                                         std::uint64_t count);
  /// Allows item id i where mask[i] is not 0. \throws std::invalid_argument if an item id is not below `count`.
  static std::shared_ptr<const ItemFilter> from_mask(std::shared_ptr<const Trie> trie, const std::uint8_t* mask,
                                                     std::uint64_t count);

  const Trie& trie() const { return *trie_; }
  std::uint64_t num_items() const { return num_items_; }
  bool allows_leaf(std::uint32_t leaf) const { return leaves().test(leaf); }
  std::uint32_t count(LeafRange range) const { return leaves().rank(range.end) - leaves().rank(range.begin); }
  /// Allowed items of one leaf.
  std::uint32_t num_items_of(std::uint32_t leaf) const;

 private:
  explicit ItemFilter(std::shared_ptr<const Trie> trie) : trie_(std::move(trie)) {}
  template <typename Allows>
  static std::shared_ptr<const ItemFilter> make(std::shared_ptr<const Trie> trie, const Allows& allows);
  RankedBitmap leaves() const { return {leaf_words_.data()}; }

  std::shared_ptr<const Trie> trie_;
  std::uint64_t num_items_ = 0;
  std::vector<std::uint64_t> leaf_words_;
  std::vector<std::uint64_t> entry_bits_;  ///< one bit an item entry; empty where every leaf has one item
};

}  // namespace gentrie

#endif  // GENTRIE_FILTER_H_
