// The parts that everything else stands on: packed integers, bitmaps with rank, searches, checksums.

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gentrie/packed.h"
#include "gentrie/sorted_search.h"
#include "gentrie/zeros.h"
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

/// Every value below the limit against its place in a std::set: spread evenly, in a stretch, in clusters, all of them.
template <typename T>
void test_search(std::uint32_t limit) {
  for (int round = 0; round < 40; ++round) {
    std::set<T> distinct;
    const std::uint64_t size = 1 + below(limit), first = below(limit), width = 1 + below(limit);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t even = below(limit), near = first + below(width), cluster = below(8) * (limit / 8) + below(3);
      const std::uint64_t values[] = {even, near, cluster, i, limit - 1 - i};
      distinct.insert(static_cast<T>(std::min<std::uint64_t>(values[round % 5], limit - 1)));
    }
    const std::vector<T> values(distinct.begin(), distinct.end());
    const auto count = static_cast<std::uint32_t>(values.size());
    const auto at = [&](std::uint32_t i) { return values[i]; };
    const auto on_guess = [&](std::uint32_t low, std::uint32_t high) { assert(low < high && high <= count); };
    std::uint32_t place = 0;
    for (std::uint32_t value = 0; value < limit; ++value) {
      const bool is_there = place < count && values[place] == value;
      assert(gentrie::find_distinct(values.data(), count, value, limit, on_guess) == (is_there ? place : count));
      assert(gentrie::find_ascending(0, count, at, static_cast<T>(value), count) == (is_there ? place : count));
      place += is_there ? 1 : 0;
    }
    assert(gentrie::find_distinct(values.data(), count, limit, limit, on_guess) == count);
    std::vector<T> damaged(values);
    for (T& value : damaged) value = static_cast<T>(random_bits());
    for (std::uint32_t value = 0; value < limit; ++value) {  // whatever it says, it stays inside: the sanitizers watch
      const std::uint32_t found = gentrie::find_distinct(damaged.data(), count, value, limit, on_guess);
      assert(found == count || (found < count && damaged[found] == value));
    }
  }
}

void test_zeros() {
  const std::size_t much = std::size_t{5} << 20;
  std::vector<char> bytes(much + 200);
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, much, much + 1, much + 63}) {
    for (const std::size_t begin : {0, 1, 63, 64, 100}) {
      std::fill(bytes.begin(), bytes.end(), 1);
      gentrie::write_zeros(bytes.data() + begin, size);
      const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(begin);
      assert(std::count(first, first + static_cast<std::ptrdiff_t>(size), 0) == static_cast<std::ptrdiff_t>(size));
      assert(std::count(bytes.begin(), bytes.end(), 1) == static_cast<std::ptrdiff_t>(bytes.size() - size));
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
  for (std::uint64_t first = 0; first <= 101; ++first) {  // in two parts, in as many as there are bytes
    gentrie::Xxhash64 parts, singly;
    parts.update(bytes.data(), first);
    parts.update(bytes.data() + first, 101 - first);
    assert(parts.digest() == 0xe99038495f85381e);
    for (std::uint64_t i = 0; i < first; ++i) singly.update(bytes.data() + i, 1);
    assert(singly.digest() == xxhash64(bytes.data(), first));
  }
}

}  // namespace

int main() {
  test_packed();
  test_search<std::uint8_t>(256);
  test_search<std::uint16_t>(2048);
  test_search<std::uint32_t>(3000);
  test_zeros();
  test_xxhash64();
  std::puts("3 passed, 0 failed");
}
