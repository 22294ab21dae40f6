#ifndef GENTRIE_RADIX_SORT_H_
#define GENTRIE_RADIX_SORT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gentrie/packed.h"

namespace gentrie {

/// A row with 64 bits to sort it by, in 12 bytes.
struct KeyedRow {
  KeyedRow() = default;
  KeyedRow(std::uint64_t key, std::uint32_t number)
      : high(static_cast<std::uint32_t>(key >> 32)), low(static_cast<std::uint32_t>(key)), row(number) {}
  std::uint64_t key() const { return std::uint64_t{high} << 32 | low; }

  std::uint32_t high, low, row;
};

/// Sorts by key, from the highest bit down. Rows of equal keys come in no particular order. `scratch` holds `count`.
/// `checkpoint()` is called before each pass over many rows.
template <typename Checkpoint>
void radix_sort(KeyedRow* rows, std::uint64_t count, KeyedRow* scratch, const Checkpoint& checkpoint) {
  constexpr std::uint64_t kInsertion = 40, kMany = 1 << 14;
  if (count >= kMany) checkpoint();
  if (count <= kInsertion) {
    for (std::uint64_t i = 1; i < count; ++i) {
      const KeyedRow row = rows[i];
      const std::uint64_t key = row.key();
      std::uint64_t at = i;
      for (; at > 0 && rows[at - 1].key() > key; --at) rows[at] = rows[at - 1];
      rows[at] = row;
    }
    return;
  }
  const std::uint64_t first = rows[0].key();
  std::uint64_t differing = 0;
  for (std::uint64_t i = 1; i < count; ++i) differing |= rows[i].key() ^ first;
  if (differing == 0) return;
  constexpr std::uint32_t kMaxBits = 8;
  const std::uint32_t top = bit_width(differing), bits = std::min({kMaxBits, bit_width(count / 8), top});
  const std::uint32_t shift = top - bits, mask = (1U << bits) - 1;
  std::uint32_t ends[1 << kMaxBits] = {};  // groups of 2^32 rows do not occur: row numbers have 32 bits
  const auto digit = [shift, mask](const KeyedRow& row) {
    return static_cast<std::uint32_t>(row.key() >> shift) & mask;
  };
  for (std::uint64_t i = 0; i < count; ++i) ++ends[digit(rows[i])];
  std::uint32_t total = 0;
  for (std::uint32_t d = 0; d <= mask; ++d) {
    const std::uint32_t size = ends[d];
    ends[d] = total;
    total += size;
  }
  for (std::uint64_t i = 0; i < count; ++i) scratch[ends[digit(rows[i])]++] = rows[i];
  std::memcpy(rows, scratch, count * sizeof *rows);
  if (shift == 0) return;
  for (std::uint32_t d = 0, begin = 0; d <= mask; begin = ends[d++]) {
    radix_sort(rows + begin, ends[d] - begin, scratch + begin, checkpoint);
  }
}

}  // namespace gentrie

#endif  // GENTRIE_RADIX_SORT_H_
