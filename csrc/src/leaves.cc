#include "leaves.h"

namespace gentrie {

Leaves::Leaves(const FrontCoded& catalog, MemoryBudget* budget, const std::function<void(std::uint64_t)>& poll)
    : catalog_(catalog), shared_(catalog.max_length) {
  constexpr std::uint64_t kPerPoll = 64;
  first_leaf_.push_back(0);
  for (const Segment& segment : catalog.segments) first_leaf_.push_back(first_leaf_.back() + segment.num_sequences());
  memory_ = MemoryShare(budget, shared_.nbytes_of(std::uint64_t{size()} + 1), "shared prefixes");
  shared_.resize(std::uint64_t{size()} + 1);
  for (std::uint64_t s = 0; s < catalog.segments.size(); ++s) {
    if (s % kPerPoll == 0) poll(0);
    const Segment& segment = catalog.segments[s];
    shared_.set(first_leaf_[s], segment.first_shared);
    for (std::uint32_t i = 1; i < segment.num_sequences(); ++i) shared_.set(first_leaf_[s] + i, segment.shared[i]);
  }
}

}  // namespace gentrie
