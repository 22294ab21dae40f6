#include "gentrie/bitmask.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gentrie {

namespace {

/// 32 logits, each kept or forbidden by a bit; without a branch, which random bits would mislead.
template <typename Word>
[[gnu::always_inline]] inline void apply_bits(Word* logits, std::uint32_t bits, Word minus_infinity) {
  for (std::uint32_t t = 0; t < 32; ++t) {
    const auto keep = static_cast<Word>(-static_cast<Word>(bits >> t & 1U));
    logits[t] = static_cast<Word>((logits[t] & keep) | (minus_infinity & ~keep));
  }
}

template <typename Word>
[[gnu::always_inline]] inline void apply_row(Word* logits, const std::int32_t* bitmask, std::uint64_t covered,
                                             Word minus_infinity) {
  constexpr std::uint64_t kWords = 16;  // of which all allow everything, as in free text
  const std::uint64_t whole = covered / 32 * 32;
  for (std::uint64_t begin = 0; begin < whole; begin += 32) {
    const auto bits = static_cast<std::uint32_t>(bitmask[begin / 32]);
    if (bits == 0xFFFFFFFF) {
      for (; begin + (kWords + 1) * 32 <= whole; begin += kWords * 32) {
        std::int32_t all = -1;
        for (std::uint64_t i = 1; i <= kWords; ++i) all &= bitmask[begin / 32 + i];
        if (all != -1) break;
      }
      continue;
    }
    if (bits == 0) {
      std::fill_n(logits + begin, 32, minus_infinity);
    } else {
      apply_bits(logits + begin, bits, minus_infinity);
    }
  }
  for (std::uint64_t t = whole; t < covered; ++t) {
    if (!(static_cast<std::uint32_t>(bitmask[t / 32]) >> t % 32 & 1)) logits[t] = minus_infinity;
  }
}

template <typename Word>
using RowFunction = void (*)(Word*, const std::int32_t*, std::uint64_t, Word);

template <typename Word>
void plain_row(Word* logits, const std::int32_t* bitmask, std::uint64_t covered, Word minus_infinity) {
  apply_row(logits, bitmask, covered, minus_infinity);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <typename Word>
[[gnu::target("avx2")]] void avx2_row(Word* logits, const std::int32_t* bitmask, std::uint64_t covered,
                                      Word minus_infinity) {
  apply_row(logits, bitmask, covered, minus_infinity);
}
template <typename Word>
RowFunction<Word> best_row() {
  return __builtin_cpu_supports("avx2") ? avx2_row<Word> : plain_row<Word>;
}
#else
template <typename Word>
RowFunction<Word> best_row() {
  return plain_row<Word>;
}
#endif

template <typename Word>
void apply(const MaskedLogits& masked, const std::int64_t* rows, std::uint64_t num_rows) {
  static const RowFunction<Word> row_function = best_row<Word>();
  const auto minus_infinity = static_cast<Word>(masked.minus_infinity);
  const std::uint64_t covered = std::min({masked.width, masked.vocab_size, masked.num_words * 32});
  for (std::uint64_t i = 0; i < num_rows; ++i) {
    Word* logits = static_cast<Word*>(masked.logits) + rows[i] * masked.logits_stride;
    row_function(logits, masked.bitmask + rows[i] * masked.bitmask_stride, covered, minus_infinity);
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
