#ifndef GENTRIE_SORTED_SEARCH_H_
#define GENTRIE_SORTED_SEARCH_H_

#include <algorithm>
#include <cstdint>

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

/// Position of `value` among `size` ascending, distinct values below `limit`, or `size`. Many values are mostly spread
/// evenly, over [0, limit) or from the first of them to the last: a value is then near where its share of that range
/// says, and the search touches the lines around that place only. Where it is not, a binary search finds it. The lines
/// of few values are asked for at once. `on_guess` is told the place before it is read, to prefetch what belongs to it.
/// Values that do not ascend (of a damaged file) give a wrong answer, never a read outside.
template <typename T, typename OnGuess>
std::uint32_t find_distinct(const T* values, std::uint32_t size, std::uint32_t value, std::uint32_t limit,
                            const OnGuess& on_guess) {
  constexpr std::uint32_t kMany = 64, kReach = 32;
  const auto at = [values](std::uint32_t position) -> std::uint32_t { return values[position]; };
  if (size < kMany || value >= limit) {
    __builtin_prefetch(values);
    __builtin_prefetch(values + size - (size > 0 ? 1 : 0));
    return find_ascending(0, size, at, value, size);
  }
  std::uint32_t begin = 0, end = size, first = 0;
  std::uint64_t span = limit;
  for (int attempt = 0; attempt < 2; ++attempt) {
    const auto guess = static_cast<std::uint32_t>(std::uint64_t{value - first} * size / span);
    const std::uint32_t low = std::max(guess, kReach) - kReach, high = std::min(guess + kReach, size);
    __builtin_prefetch(values + guess);
    on_guess(guess);
    const bool is_before = low > 0 && at(low) > value, is_behind = high < size && at(high) <= value;
    if (!is_before && !is_behind) return find_ascending(low, high, at, value, size);
    begin = is_behind ? high : 0;
    end = is_behind ? size : low;
    first = at(0);
    if (value < first || value > at(size - 1)) return size;
    span = std::uint64_t{at(size - 1) - first} + 1;
  }
  return find_ascending(begin, end, at, value, size);
}

}  // namespace gentrie

#endif  // GENTRIE_SORTED_SEARCH_H_
