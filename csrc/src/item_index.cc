#include "item_index.h"

#include <algorithm>
#include <limits>

#include "poll.h"

namespace gentrie {

ItemIndex::ItemIndex(const TrieView& view, const Poll& poll) : view_(view) {
  StepPoll polled(poll);
  const auto num_items = static_cast<std::uint32_t>(view.num_items);
  std::int64_t least = std::numeric_limits<std::int64_t>::max(), greatest = std::numeric_limits<std::int64_t>::min();
  for (std::uint32_t entry = 0; entry < num_items; ++entry) {
    polled();
    const std::int64_t id = view.item_id(entry);
    least = std::min(least, id);
    greatest = std::max(greatest, id);
  }
  first_id_ = least;
  const std::uint64_t width = static_cast<std::uint64_t>(greatest) - static_cast<std::uint64_t>(least);
  is_hashed_ = width >= 2 * view.num_items;
  if (is_hashed_) {
    const std::uint32_t bits =
        std::max(1U, bit_width(view.num_items + view.num_items / 3));  // at most three quarters full
    hash_shift_ = 64 - bits;
    // No entry has all of its bits set, so that kNone is no entry with a tag.
    entry_mask_ = static_cast<std::uint32_t>((std::uint64_t{1} << bit_width(view.num_items)) - 1);
    heads_.assign(std::uint64_t{1} << bits, kNone);
  } else {
    heads_.assign(width + 1, kNone);
  }
  for (std::uint32_t entry = num_items; entry-- > 0;) {  // backwards: entries of one id then ascend
    polled();
    const std::int64_t id = view.item_id(entry);
    const std::uint64_t slot = slot_of(id);
    if (slot >= heads_.size()) throw FormatError("the trie's file was changed while it was in use");
    std::uint32_t& head = heads_[slot];
    if (head != kNone) {
      if (others_.empty()) others_.assign(num_items, kNone);
      others_[entry] = head & entry_mask_;
    }
    head = entry | tag_of(id);
  }
  if (view.item_indptr == nullptr) return;
  leaf_starts_.assign(RankedBitmap::num_words(view.num_items), 0);
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
    polled();
    const std::uint64_t start = view.items_of_leaf(leaf).first;
    leaf_starts_[start >> 5] |= std::uint64_t{1} << (start & 31);
  }
  RankedBitmap::index(leaf_starts_.data(), leaf_starts_.size());
}

std::uint32_t ItemIndex::leaf_of(std::uint32_t entry) const {
  if (leaf_starts_.empty()) return entry;
  return std::max(RankedBitmap{leaf_starts_.data()}.rank(std::uint64_t{entry} + 1), 1U) - 1;
}

}  // namespace gentrie
