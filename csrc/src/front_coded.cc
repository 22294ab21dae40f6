#include "front_coded.h"

#include <algorithm>

namespace gentrie {

std::uint64_t Segment::nbytes() const {
  const std::uint64_t narrow = offsets.size() + tokens.size() + items.size() + repeats.size();
  return shared.nbytes() + stored.nbytes() + 4 * narrow + 8 * big_items.size() + sizeof *this;
}

void SegmentWriter::clear() {
  segment_.first_shared = 0;
  segment_.shared = Lengths(max_length_);
  segment_.stored = Lengths(max_length_);
  segment_.offsets.clear();
  segment_.tokens.clear();
  segment_.repeats.clear();
  items_.clear();
  num_tokens_ = window_ = filled_ = 0;
  has_item_ = false;
}

Segment SegmentWriter::finish() {
  if (filled_ > 0) segment_.tokens.push_back(static_cast<std::uint32_t>(window_));
  segment_.tokens.insert(segment_.tokens.end(), 2, 0);
  Segment finished = segment_;  // a copy has no spare capacity
  const auto fits = [](std::int64_t id) {
    return id >= std::numeric_limits<std::int32_t>::min() && id <= std::numeric_limits<std::int32_t>::max();
  };
  if (std::all_of(items_.begin(), items_.end(), fits)) {
    finished.items.assign(items_.begin(), items_.end());
  } else {
    finished.big_items = items_;
  }
  clear();
  return finished;
}

}  // namespace gentrie
