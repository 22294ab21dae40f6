// The parts that everything else stands on: packed integers, bitmaps with rank, checksums.

#include <cassert>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "gentrie/packed.h"
#include "xxhash64.h"

namespace {

using gentrie::PackedView;
using gentrie::RankedBitmap;
using gentrie::xxhash64;

std::mt19937_64 random_bits(7);
std::uint64_t below(std::uint64_t limit) { return random_bits() % limit; }

void test_packed() {
  for (std::uint32_t bits = 0; bits <= 32; ++bits) {
    const std::uint64_t count = 100;
    std::vector<std::uint32_t> words(PackedView::num_words(count, bits)), values(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      values[i] = static_cast<std::uint32_t>(random_bits() & ((std::uint64_t{1} << bits) - 1));
      for (std::uint32_t b = 0; b < bits; ++b) {
        const std::uint64_t at = i * bits + b;
        words[at / 32] |= (values[i] >> b & 1u) << (at % 32);
      }
    }
    for (std::uint64_t i = 0; i < count; ++i) assert((PackedView{words.data(), bits}[i] == values[i]));
  }
  for (const std::uint64_t count : {0, 1, 31, 32, 33, 500}) {
    std::vector<std::uint64_t> words(RankedBitmap::num_words(count));
    std::vector<bool> set(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      set[i] = below(2) != 0;
      words[i / 32] |= std::uint64_t{set[i]} << (i % 32);
    }
    RankedBitmap::index(words.data(), words.size());
    const RankedBitmap bitmap{words.data()};
    std::uint32_t ones = 0;
    for (std::uint64_t i = 0; i <= count; ++i) {
      assert(bitmap.rank(i) == ones);
      if (i == count) break;
      assert(bitmap.test(i) == set[i]);
      ones += set[i] ? 1 : 0;
    }
  }
}

void test_xxhash64() {
  std::string bytes;
  for (int i = 0; i < 101; ++i) bytes.push_back(static_cast<char>(i));
  assert(xxhash64("", 0) == 0xef46db3751d8e999);
  assert(xxhash64("a", 1) == 0xd24ec4f1a98c6e5b);
  assert(xxhash64("abc", 3) == 0x44bc2cf5ad770999);
  assert(xxhash64(bytes.data(), 32) == 0xcbf59c5116ff32b4);
  assert(xxhash64(bytes.data(), 101) == 0xe99038495f85381e);
  assert(xxhash64("", 0, 7) == 0x95f0626f6f0a4409);
  assert(xxhash64(bytes.data(), 101, 7) == 0xe878e9791dbc64fa);
}

}  // namespace

int main() {
  test_packed();
  test_xxhash64();
  std::puts("2 passed, 0 failed");
}
