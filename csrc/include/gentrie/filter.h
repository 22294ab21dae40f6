#ifndef GENTRIE_FILTER_H_
#define GENTRIE_FILTER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gentrie/huge_pages.h"
#include "gentrie/trie.h"

namespace gentrie {

/// Which items of one trie may be given. Immutable and shared.
///
/// A resident filter is a bitmap over the leaves (a leaf is allowed if any of its items is) with a rank directory, two
/// bits a leaf, so that the allowed sequences below any edge are counted in O(1). A filter made by deny() shares that
/// bitmap and keeps the few denied items in sorted lists beside it: a count is O(log k) more.
class ItemFilter {
 public:
  using Ptr = std::shared_ptr<const ItemFilter>;
  using Words = std::vector<std::uint64_t, HugePageAllocator<std::uint64_t>>;
  static constexpr std::uint64_t kMaxDenied = 1024;

  /// Allows the listed item ids; ids that the catalog does not hold are ignored.
  static Ptr from_item_ids(std::shared_ptr<const Trie> trie, const std::int64_t* ids, std::uint64_t count,
                           const Poll& poll = {});
  /// Allows item id i where mask[i] is not 0. \throws std::invalid_argument if an item id is not below `count`.
  static Ptr from_mask(std::shared_ptr<const Trie> trie, const std::uint8_t* mask, std::uint64_t count,
                       int num_threads = 1, const Poll& poll = {});
  /// Allows the i-th item in the order of the leaves where mask[i] is not 0.
  /// \throws std::invalid_argument if `count` is not the number of items.
  static Ptr from_leaf_order(std::shared_ptr<const Trie> trie, const std::uint8_t* mask, std::uint64_t count,
                             int num_threads = 1, const Poll& poll = {});

  /// The same less the listed item ids (those that the catalog does not hold are ignored); no bitmap is made.
  /// \throws std::invalid_argument for more than kMaxDenied, those denied before included.
  Ptr deny(const std::int64_t* ids, std::uint64_t count, const Poll& poll = {}) const;

  Ptr complement(const Poll& poll = {}) const;
  /// \throws std::invalid_argument if the filters belong to different tries (so for all three).
  Ptr intersection(const ItemFilter& other, const Poll& poll = {}) const;
  Ptr union_with(const ItemFilter& other, const Poll& poll = {}) const;
  Ptr difference(const ItemFilter& other, const Poll& poll = {}) const;
  Ptr operator~() const { return complement(); }
  Ptr operator&(const ItemFilter& other) const { return intersection(other); }
  Ptr operator|(const ItemFilter& other) const { return union_with(other); }
  Ptr operator-(const ItemFilter& other) const { return difference(other); }

  const Trie& trie() const { return *resident_->trie; }
  std::uint64_t num_items() const { return resident_->num_items - denied_entries_.size(); }
  std::uint32_t num_sequences() const { return rank(trie().view().num_leaves); }
  std::uint64_t nbytes() const;

  bool allows_leaf(std::uint32_t leaf) const;
  /// Whether row `entry` of the leaf-to-item table may be given.
  bool allows_entry(std::uint64_t entry) const;
  /// Allowed leaves before `leaf`.
  std::uint32_t rank(std::uint32_t leaf) const;
  std::uint32_t count(LeafRange range) const { return rank(range.end) - rank(range.begin); }
  /// Allowed items of one leaf.
  std::uint32_t num_items_of(std::uint32_t leaf) const;
  /// Appends the first tokens of a node's edges that lead to an allowed leaf.
  void append_open_edges(std::uint32_t node, std::vector<Token>* tokens) const;

  /// The resident bitmap in RankedBitmap's layout, and the leaves that deny() closed, ascending.
  const Words& leaf_words() const { return resident_->leaf_words; }
  const std::vector<std::uint32_t>& closed_leaves() const { return closed_leaves_; }

 private:
  struct Resident {
    std::shared_ptr<const Trie> trie;
    std::uint64_t num_items = 0;
    Words leaf_words;
    Words entry_words;  ///< one bit an entry; empty where every leaf has one item
  };

  explicit ItemFilter(std::shared_ptr<const Resident> resident) : resident_(std::move(resident)) {}
  static Ptr make(std::shared_ptr<const Trie> trie, Words entry_words, int num_threads, const Poll& poll);
  /// Whether the resident filter allows `entry`.
  bool is_resident(std::uint64_t entry) const {
    const std::uint64_t word = resident_->entry_words.empty() ? resident_->leaf_words[entry >> 5] >> (entry & 31)
                                                              : resident_->entry_words[entry >> 6] >> (entry & 63);
    return word & 1;
  }
  /// Brings what is_resident() reads.
  GENTRIE_PREFETCH void prefetch_resident(std::uint64_t entry) const {
    __builtin_prefetch(resident_->entry_words.empty() ? &resident_->leaf_words[entry >> 5]
                                                      : &resident_->entry_words[entry >> 6]);
  }
  /// One bit an entry, denied ones left out.
  Words entry_words() const;
  template <typename Operation>
  Ptr combine(const ItemFilter& other, const Operation& operation, const Poll& poll) const;

  std::shared_ptr<const Resident> resident_;
  std::uint64_t num_denied_ids_ = 0;
  std::vector<std::uint32_t> denied_entries_;  ///< of those that the resident filter allows, ascending
  std::vector<std::uint32_t> closed_leaves_;   ///< leaves that have thereby no allowed item left, ascending
};

/// next_tokens_batch() of the trie for what a filter leaves of it.
void next_tokens_batch(const ItemFilter& filter, const State* states, std::uint64_t count, std::vector<Token>* tokens,
                       std::vector<std::int64_t>* indptr, const Poll& poll = {});

/// Allowed sequences that each state can still reach; 0 for negative states.
/// \throws std::invalid_argument naming the first row with a state that the trie cannot have produced
void count_below(const ItemFilter& filter, const State* states, std::uint64_t count, std::int64_t* out,
                 const Poll& poll = {});

}  // namespace gentrie

#endif  // GENTRIE_FILTER_H_
