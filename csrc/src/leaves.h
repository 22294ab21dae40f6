#ifndef GENTRIE_LEAVES_H_
#define GENTRIE_LEAVES_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "front_coded.h"

namespace gentrie {

/// A front-coded catalog with its sequences numbered through, in lexicographic order: the leaves of the trie, which
/// numbers them otherwise once its nodes are known.
class Leaves {
 public:
  Leaves(const FrontCoded& catalog, MemoryBudget* budget, const std::function<void(std::uint64_t)>& poll);

  const FrontCoded& catalog() const { return catalog_; }
  std::uint32_t size() const { return first_leaf_.back(); }
  /// Tokens that each leaf shares with the one before it; entries 0 and size() are 0.
  const Lengths& shared() const { return shared_; }
  std::uint32_t first_leaf(std::uint64_t segment) const { return first_leaf_[segment]; }
  std::uint64_t segment_of(std::uint32_t leaf) const {
    const auto after = std::upper_bound(first_leaf_.begin(), first_leaf_.end(), leaf);
    return static_cast<std::uint64_t>(after - first_leaf_.begin()) - 1;
  }

 private:
  const FrontCoded& catalog_;
  std::vector<std::uint32_t> first_leaf_;  ///< of each segment
  MemoryShare memory_;
  Lengths shared_;
};

/// The segment that holds a leaf; fast where the leaves asked for lie near each other.
class SegmentCursor {
 public:
  explicit SegmentCursor(const Leaves& leaves) : leaves_(leaves) {}

  const Segment& seek(std::uint32_t leaf) {
    if (segment_ == nullptr || leaf < begin_ || leaf >= end_) {
      const std::uint64_t s = leaves_.segment_of(leaf);
      segment_ = &leaves_.catalog().segments[s];
      begin_ = leaves_.first_leaf(s);
      end_ = leaves_.first_leaf(s + 1);
    }
    return *segment_;
  }
  /// First leaf of the segment last sought.
  std::uint32_t begin() const { return begin_; }

 private:
  const Leaves& leaves_;
  const Segment* segment_ = nullptr;
  std::uint32_t begin_ = 0, end_ = 0;
};

/// Reads tokens of leaves; fast where the leaves asked for ascend.
class LeafReader {
 public:
  explicit LeafReader(const Leaves& leaves) : cursor_(leaves), tokens_{nullptr, leaves.catalog().token_bits()} {}

  void seek(std::uint32_t leaf) {
    const Segment& segment = cursor_.seek(leaf);
    if (tokens_.words == segment.tokens.data() && leaf == leaf_) return;
    const std::uint32_t place = leaf - cursor_.begin();
    if (tokens_.words == segment.tokens.data() && leaf == leaf_ + 1) {
      offset_ += segment.stored[place - 1];
    } else {
      offset_ = segment.offset(place);
    }
    tokens_.words = segment.tokens.data();
    leaf_ = leaf;
    shared_ = segment.shared[place];
  }
  /// Vocabulary index at `position` of the leaf sought, which must be one that it does not share with the leaf before.
  std::uint32_t token(std::uint32_t position) const { return tokens_[offset_ + position - shared_]; }

 private:
  SegmentCursor cursor_;
  PackedView tokens_;
  std::uint32_t leaf_ = 0, shared_ = 0;
  std::uint64_t offset_ = 0;
};

}  // namespace gentrie

#endif  // GENTRIE_LEAVES_H_
