#ifndef GENTRIE_ITEM_INDEX_H_
#define GENTRIE_ITEM_INDEX_H_

#include <cstdint>
#include <vector>

#include "gentrie/huge_pages.h"
#include "gentrie/view.h"

namespace gentrie {

/// Finds the entries (rows of the leaf-to-item table) of an item id in a few loads: ids that lie close together are
/// positions of an array, others are hashed. 4 to 12 bytes an item. Refers to the view it was made of.
class ItemIndex {
 public:
  explicit ItemIndex(const TrieView& view, const Poll& poll = {});

  /// Calls visit(entry) for each entry of each id, in the order of the ids; an item listed under several sequences has
  /// several entries. What later ids will read is brought meanwhile: their cache misses overlap.
  template <typename Visit>
  void for_each_entry(const std::int64_t* ids, std::uint64_t count, const Visit& visit) const {
    for (std::uint64_t i = 0; i < count + 2 * kAhead; ++i) {
      if (i < count) prefetch_head(ids[i]);
      if (i >= kAhead && i < count + kAhead) prefetch_item_id(ids[i - kAhead]);
      if (i < 2 * kAhead) continue;
      const std::uint64_t slot = slot_of(ids[i - 2 * kAhead]);
      if (slot >= heads_.size()) continue;
      if (heads_[slot] == kNone) continue;
      for (std::uint32_t entry = entry_at(slot); entry != kNone; entry = others_.empty() ? kNone : others_[entry]) {
        visit(entry);
      }
    }
  }
  /// Brings what leaf_of() reads.
  GENTRIE_PREFETCH void prefetch_leaf(std::uint32_t entry) const {
    if (!leaf_starts_.empty()) __builtin_prefetch(&leaf_starts_[entry >> 5]);
  }
  /// The leaf that an entry belongs to.
  std::uint32_t leaf_of(std::uint32_t entry) const;

  std::uint64_t nbytes() const {
    return (heads_.size() + others_.size()) * sizeof heads_[0] + leaf_starts_.size() * sizeof(std::uint64_t);
  }

 private:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;
  static constexpr std::uint64_t kAhead = 32;  ///< ids between one read and the next that needs its result

  static std::uint64_t hash_of(std::int64_t id) { return static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15; }
  std::uint64_t first_slot_of(std::int64_t id) const {
    return is_hashed_ ? hash_of(id) >> hash_shift_
                      : static_cast<std::uint64_t>(id) - static_cast<std::uint64_t>(first_id_);
  }
  std::uint64_t slot_after(std::uint64_t slot) const { return (slot + 1) & (heads_.size() - 1); }
  std::uint32_t entry_at(std::uint64_t slot) const { return heads_[slot] & entry_mask_; }
  /// What the bits of a head above its entry hold: further bits of the hash, by which nearly all other ids are told
  /// apart without a look at the item's own.
  std::uint32_t tag_of(std::int64_t id) const {
    const std::uint64_t behind_slot = is_hashed_ ? hash_of(id) << (64 - hash_shift_) : 0;
    return static_cast<std::uint32_t>(behind_slot >> 32) & ~entry_mask_;
  }
  /// Of hashed ids: the first slot from `slot` on that is empty or has the tag of `id`.
  std::uint64_t next_match(std::uint64_t slot, std::int64_t id) const {
    const std::uint32_t tag = tag_of(id);
    while (heads_[slot] != kNone && (heads_[slot] & ~entry_mask_) != tag) slot = slot_after(slot);
    return slot;
  }
  /// Where the entries of `id` hang, or would; beyond heads_ if it lies outside an array of positions.
  std::uint64_t slot_of(std::int64_t id) const {
    std::uint64_t slot = first_slot_of(id);
    if (!is_hashed_) return slot;
    slot = next_match(slot, id);
    while (heads_[slot] != kNone && view_.item_id(entry_at(slot)) != id) slot = next_match(slot_after(slot), id);
    return slot;
  }

  GENTRIE_PREFETCH void prefetch_head(std::int64_t id) const {
    const std::uint64_t slot = first_slot_of(id);
    if (slot < heads_.size()) __builtin_prefetch(&heads_[slot]);
  }
  /// Only a hashed id is compared with that of its entry.
  GENTRIE_PREFETCH void prefetch_item_id(std::int64_t id) const {
    if (!is_hashed_) return;
    const std::uint64_t slot = next_match(first_slot_of(id), id);
    if (heads_[slot] != kNone) {
      __builtin_prefetch(static_cast<const char*>(view_.item_ids) +
                         std::uint64_t{entry_at(slot)} * view_.item_id_bytes);
    }
  }

  TrieView view_;
  bool is_hashed_ = false;
  std::int64_t first_id_ = 0;
  std::uint32_t hash_shift_ = 0;
  std::uint32_t entry_mask_ = kNone;                                    ///< the bits of a head that hold an entry
  std::vector<std::uint32_t, HugePageAllocator<std::uint32_t>> heads_;  ///< first entry of each id, and its tag
  std::vector<std::uint32_t> others_;       ///< the next entry of the same id; empty where no id has two
  std::vector<std::uint64_t> leaf_starts_;  ///< RankedBitmap over the entries; empty where every leaf has one item
};

}  // namespace gentrie

#endif  // GENTRIE_ITEM_INDEX_H_
