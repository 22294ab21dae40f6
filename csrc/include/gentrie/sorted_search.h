#ifndef GENTRIE_SORTED_SEARCH_H_
#define GENTRIE_SORTED_SEARCH_H_

#include <algorithm>
#include <cstdint>

#include "gentrie/packed.h"
#include "gentrie/types.h"

namespace gentrie {

/// Position of `value` among at(begin), ..., at(end - 1), which ascend, or `absent`. The comparison becomes a
/// conditional move: no branch to mispredict.
template <typename At, typename Value>
std::uint32_t find_ascending(std::uint32_t begin, std::uint32_t end, const At& at, Value value, std::uint32_t absent) {
  std::uint32_t length = end - begin;
  while (length > 1) {
    const std::uint32_t half = length / 2;
    begin = __builtin_expect_with_probability(at(begin + half - 1) < value, 1, 0.5) ? begin + half : begin;
    length -= half;
  }
  return length == 1 && at(begin) == value ? begin : absent;
}

/// Asks for every cache line of `count` values at once.
template <typename T>
GENTRIE_PREFETCH void prefetch_lines(const T* values, std::uint32_t count) {
  constexpr std::uint32_t kLine = 64 / sizeof(T);
  for (std::uint32_t place = 0; place < count; place += kLine) __builtin_prefetch(values + place);
  __builtin_prefetch(values + count);  // where a search looks at last, or the line after its last
}

/// How far from its share of the range a value may lie among `size` of them: where they are drawn at random, the
/// standard deviation is at most sqrt(size) / 2. This is 4 of them or more.
inline std::uint32_t reach_of(std::uint32_t size) { return std::uint32_t{1} << (bit_width(size) + 3) / 2; }

/// Position of `value` among `size` ascending, distinct values below `limit`, or `size`. Many values are mostly spread
/// evenly, over [0, limit): a value is then near where its share of that range says, and the search touches the lines
/// around that place only. Where it is not, it is looked for in the same way in what is left, and at last by a binary
/// search. The lines of few values are asked for at once. `on_guess` is told [low, high) before it is searched, to
/// prefetch what belongs to it. Values that do not ascend (of a damaged file) give a wrong answer, never a read
/// outside.
template <typename T, typename OnGuess>
std::uint32_t find_distinct(const T* values, std::uint32_t size, std::uint32_t value, std::uint32_t limit,
                            const OnGuess& on_guess) {
  constexpr std::uint32_t kMany = 64;
  const auto at = [values](std::uint32_t position) -> std::uint32_t { return values[position]; };
  if (size < kMany || value >= limit) {
    prefetch_lines(values, std::min(size, kMany));
    return find_ascending(0, size, at, value, size);
  }
  std::uint32_t begin = 0, end = size, first = 0;
  std::uint64_t span = limit;
  for (int attempt = 0; attempt < 3; ++attempt) {
    const std::uint32_t guess = begin + static_cast<std::uint32_t>(std::uint64_t{value - first} * (end - begin) / span);
    const std::uint32_t reach = reach_of(end - begin);
    const std::uint32_t low = std::max(guess, begin + reach) - reach, high = std::min(guess + reach, end);
    prefetch_lines(values + low, high - low);
    on_guess(low, high);
    const bool is_before = low > begin && at(low) > value, is_behind = high < end && at(high) <= value;
    if (!is_before && !is_behind) return find_ascending(low, high, at, value, size);
    (is_behind ? begin : end) = is_behind ? high : low;
    first = at(begin);
    const std::uint32_t last = at(end - 1);
    if (value < first || value > last) return size;
    span = std::uint64_t{last - first} + 1;
  }
  return find_ascending(begin, end, at, value, size);
}

}  // namespace gentrie

#endif  // GENTRIE_SORTED_SEARCH_H_
