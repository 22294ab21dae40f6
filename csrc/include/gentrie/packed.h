#ifndef GENTRIE_PACKED_H_
#define GENTRIE_PACKED_H_

#include <cstdint>
#include <cstring>

#include "gentrie/types.h"

namespace gentrie {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays are stored little-endian and mapped as they are");

/// Unsigned integers of `bits` (0..32) bits each, one after the other in 32-bit words, lowest bit first.
/// Two words of padding follow the last value, so that a read may always take eight bytes.
struct PackedView {
  const std::uint32_t* words = nullptr;
  std::uint32_t bits = 0;

  std::uint32_t operator[](std::uint64_t index) const {
    const std::uint64_t bit = index * bits;
    std::uint64_t window;
    std::memcpy(&window, reinterpret_cast<const char*>(words) + (bit >> 3), sizeof window);
    return static_cast<std::uint32_t>((window >> (bit & 7)) & ((std::uint64_t{1} << bits) - 1));
  }

  /// Words that `count` values take, padding included.
  static std::uint64_t num_words(std::uint64_t count, std::uint32_t bits) { return (count * bits + 31) / 32 + 2; }
};

/// Bits needed to hold `value`.
inline std::uint32_t bit_width(std::uint64_t value) {
  return value == 0 ? 0 : 64 - static_cast<std::uint32_t>(__builtin_clzll(value));
}

/// Ones of `word`. Baseline x86-64 has no instruction for it, and the compiler's substitute is a call.
inline std::uint32_t count_ones(std::uint32_t word) {
  word -= word >> 1 & 0x55555555;
  word = (word & 0x33333333) + (word >> 2 & 0x33333333);
  return ((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101 >> 24;
}

/// A bitmap with its own rank directory: word w holds bits [32w, 32w + 32) in its low half and the number of ones
/// before them in its high half, so that one 8-byte load answers both membership and rank.
struct RankedBitmap {
  const std::uint64_t* words = nullptr;

  bool test(std::uint64_t index) const { return (words[index >> 5] >> (index & 31)) & 1; }

  /// Ones before `index`.
  std::uint32_t rank(std::uint64_t index) const {
    const std::uint64_t word = words[index >> 5];
    const std::uint32_t below = static_cast<std::uint32_t>(word) & ((std::uint32_t{1} << (index & 31)) - 1);
    return static_cast<std::uint32_t>(word >> 32) + count_ones(below);
  }

  /// Words for `count` bits; rank(count) may be asked too.
  static std::uint64_t num_words(std::uint64_t count) { return count / 32 + 1; }

  /// Fills the high halves from the low ones; `ones` lie before the first word.
  static void index(std::uint64_t* words, std::uint64_t num_words, std::uint64_t ones = 0) {
    for (std::uint64_t w = 0; w < num_words; ++w) {
      const std::uint32_t bits = static_cast<std::uint32_t>(words[w]);
      words[w] = ones << 32 | bits;
      ones += count_ones(bits);
    }
  }
};

/// The index of each of some ascending tokens, by one read: a bitmap from the first of them to the last.
struct RankedTokens {
  RankedBitmap present;
  Token first = 0;
  std::uint32_t range = 0;  ///< last - first + 1; 0: there is none

  /// Index of `token`, or `absent`.
  std::uint32_t find(Token token, std::uint32_t absent) const {
    const std::uint32_t place = static_cast<std::uint32_t>(token) - static_cast<std::uint32_t>(first);
    return place < range && present.test(place) ? present.rank(place) : absent;
  }
};

}  // namespace gentrie

#endif  // GENTRIE_PACKED_H_
