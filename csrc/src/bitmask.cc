#include "gentrie/bitmask.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gentrie {

namespace {

template <typename Word>
void apply(const MaskedLogits& masked, const std::int64_t* rows, std::uint64_t num_rows) {
  const auto minus_infinity = static_cast<Word>(masked.minus_infinity);
  const std::uint64_t covered = std::min({masked.width, masked.vocab_size, masked.num_words * 32});
  for (std::uint64_t i = 0; i < num_rows; ++i) {
    Word* logits = static_cast<Word*>(masked.logits) + rows[i] * masked.logits_stride;
    const std::int32_t* bitmask = masked.bitmask + rows[i] * masked.bitmask_stride;
    for (std::uint64_t begin = 0; begin < covered; begin += 32) {
      const auto bits = static_cast<std::uint32_t>(bitmask[begin / 32]);
      if (bits == 0xFFFFFFFF) continue;
      const std::uint64_t end = std::min(begin + 32, covered);
      if (bits == 0) {
        std::fill(logits + begin, logits + end, minus_infinity);
      } else {
        for (std::uint64_t t = begin; t < end; ++t) {
          if (!(bits >> (t - begin) & 1)) logits[t] = minus_infinity;
        }
      }
    }
    std::fill(logits + covered, logits + masked.width, minus_infinity);
  }
}

}  // namespace

void apply_bitmask(const MaskedLogits& masked, const std::int64_t* rows, std::uint64_t num_rows) {
  switch (masked.itemsize) {
    case 2:
      return apply<std::uint16_t>(masked, rows, num_rows);
    case 4:
      return apply<std::uint32_t>(masked, rows, num_rows);
    case 8:
      return apply<std::uint64_t>(masked, rows, num_rows);
    default:
      throw std::invalid_argument("itemsize=" + std::to_string(masked.itemsize) + ", expected 2, 4 or 8");
  }
}

}  // namespace gentrie
