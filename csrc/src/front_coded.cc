#include "front_coded.h"

#include <algorithm>

namespace gentrie {

void FrontCoded::settle() {
  segments.erase(std::remove_if(segments.begin(), segments.end(),
                                [](const Segment& segment) { return segment.num_sequences() == 0; }),
                 segments.end());
  num_sequences = num_items = max_length = 0;
  for (const Segment& segment : segments) {
    num_sequences += segment.num_sequences();
    num_items += segment.num_items();
    for (std::uint32_t i = 0; i < segment.num_sequences(); ++i) {
      max_length = std::max<std::uint64_t>(max_length, segment.length(i));
    }
  }
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
