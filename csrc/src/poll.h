#ifndef GENTRIE_POLL_H_
#define GENTRIE_POLL_H_

#include <cstdint>

#include "gentrie/types.h"

namespace gentrie {

/// Polls once for every so many steps of a loop, each of a few nanoseconds up to a cache miss or two.
class StepPoll {
 public:
  explicit StepPoll(const Poll& poll) : poll_(poll) {}

  void operator()(std::uint64_t steps = 1) {
    if ((steps_ += steps) < kSteps) return;
    steps_ = 0;
    if (poll_) poll_();
  }

 private:
  static constexpr std::uint64_t kSteps = std::uint64_t{1} << 16;
  const Poll& poll_;
  std::uint64_t steps_ = 0;
};

}  // namespace gentrie

#endif  // GENTRIE_POLL_H_
