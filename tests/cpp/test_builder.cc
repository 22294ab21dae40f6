// The builder's parts: radix sort, front coding, spilled runs and their merge, memory accounts, chunked builds. Run it
// under the sanitizers: cmake --workflow --preset sanitize.

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gentrie/builder.h"
#include "memory_budget.h"
#include "merge_runs.h"
#include "radix_sort.h"
#include "sort_rows.h"
#include "sorted_run.h"

namespace {

using gentrie::FrontCoded;
using gentrie::KeyedRow;
using gentrie::MemoryBudget;
using gentrie::Segment;
using gentrie::SortedRun;
using gentrie::Token;
/// Sequences (end token included) and the items of each.
using Catalog = std::map<std::vector<Token>, std::set<std::int64_t>>;

constexpr Token kEnd = 1;
constexpr std::uint64_t kUnlimited = ~std::uint64_t{0} / 2;
const gentrie::Tick kNoTick = [](double) {};

gentrie::BuildOptions options(int num_threads) {
  gentrie::BuildOptions result;
  result.vocab_size = 1000;
  result.end_token_id = kEnd;
  result.num_threads = num_threads;
  return result;
}

/// Rows in the form of a source, and what they mean.
struct Rows {
  std::vector<std::int64_t> values, indptr{0}, item_ids;
  Catalog catalog;

  void add(std::vector<Token> row, std::int64_t item) {
    values.insert(values.end(), row.begin(), row.end());
    indptr.push_back(static_cast<std::int64_t>(values.size()));
    item_ids.push_back(item);
    row.push_back(kEnd);
    catalog[row].insert(item);
  }
  gentrie::SequenceSource source() const {
    gentrie::SequenceSource result;
    result.values = values.data();
    result.indptr = indptr.data();
    result.num_rows = item_ids.size();
    result.num_values = values.size();
    result.item_ids = item_ids.data();
    return result;
  }
};

Rows random_rows(std::mt19937& rng, std::size_t num_rows, std::size_t max_length, std::size_t num_tokens) {
  Rows rows;
  for (std::size_t i = 0; i < num_rows; ++i) {
    std::vector<Token> row(1 + rng() % max_length, 7);
    for (std::size_t at = rng() % row.size(); at < row.size(); ++at)
      row[at] = 3 + static_cast<Token>(rng() % num_tokens);
    rows.add(row, rng() % 4 == 0 ? std::int64_t{1} << 40 : static_cast<std::int64_t>(rng() % 50) - 5);
  }
  return rows;
}

void test_radix_sort() {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 300; ++round) {
    const std::uint64_t count = rng() % (round < 250 ? 200 : 20000), mask = rng() >> (rng() % 64) << (rng() % 30);
    const std::uint64_t common = rng() & ~mask;
    std::vector<KeyedRow> rows, scratch(count);
    std::vector<std::uint64_t> keys;
    for (std::uint64_t i = 0; i < count; ++i) {
      keys.push_back((rng() & mask) | common);
      rows.emplace_back(keys.back(), static_cast<std::uint32_t>(i));
    }
    gentrie::radix_sort(rows.data(), count, scratch.data(), [] {});
    std::set<std::uint32_t> seen;
    for (std::uint64_t i = 0; i < count; ++i) {
      assert(i == 0 || rows[i - 1].key() <= rows[i].key());
      assert(rows[i].key() == keys[rows[i].row]);
      seen.insert(rows[i].row);
    }
    assert(seen.size() == count);
  }
}

Catalog decoded(const FrontCoded& coded) {
  Catalog catalog;
  std::vector<Token> sequence, before;
  for (const Segment& segment : coded.segments) {
    std::uint64_t item = 0;
    auto repeat = segment.repeats.begin();
    for (std::uint32_t i = 0; i < segment.num_sequences(); ++i) {
      before = sequence;
      sequence.resize(segment.shared[i]);
      const gentrie::PackedView tokens{segment.tokens.data(), coded.token_bits()};
      for (std::uint32_t t = 0; t < segment.stored[i]; ++t) {
        sequence.push_back(coded.vocabulary[tokens[segment.offset(i) + t]]);
      }
      assert(before.empty() || before < sequence);
      const std::uint32_t shared = i == 0 ? segment.first_shared : segment.shared[i];
      const auto parted = std::mismatch(before.begin(), before.end(), sequence.begin());
      assert(parted.first - before.begin() == static_cast<std::ptrdiff_t>(shared));
      std::set<std::int64_t>& items = catalog[sequence];
      items.insert(segment.item(item++));
      for (; repeat != segment.repeats.end() && *repeat == i; ++repeat) {
        assert(segment.item(item) > segment.item(item - 1));
        items.insert(segment.item(item++));
      }
    }
    assert(item == segment.num_items() && repeat == segment.repeats.end());
  }
  return catalog;
}

void test_sort_and_merge(const std::string& folder) {
  std::mt19937 rng(2);
  for (int round = 0; round < 60; ++round) {
    const bool is_large = round % 20 == 0;
    MemoryBudget budget(kUnlimited);
    Catalog all;
    std::vector<SortedRun> runs;
    for (unsigned run = 0; run < 1 + rng() % 5; ++run) {
      const Rows rows = random_rows(rng, is_large ? 30000 : 1 + rng() % 60, round % 3 == 0 ? 300 : 9, 1 + rng() % 40);
      FrontCoded coded =
          gentrie::sort_rows(rows.source(), 0, rows.item_ids.size(), options(0), 1 + round % 3, &budget, kNoTick);
      assert(decoded(coded) == rows.catalog);
      for (const auto& [sequence, items] : rows.catalog) all[sequence].insert(items.begin(), items.end());
      runs.emplace_back(std::move(coded), rng() % 2 == 0 ? folder : std::string());
    }
    assert(decoded(gentrie::merge_runs(runs, 1 + round % 3, &budget, kNoTick)) == all);
  }
}

void test_chunked_builder(const std::string& folder) {
  std::mt19937 rng(3);
  for (int round = 0; round < 30; ++round) {
    const Rows rows = random_rows(rng, 1 + rng() % 400, 9, 1 + rng() % 10);
    const auto whole = gentrie::build_trie(rows.source(), options(2));
    gentrie::ChunkedBuilder builder(options(2), round % 2 == 0 ? folder : std::string());
    for (int again = 0; again < 2; ++again) {  // a builder may be used anew
      for (std::uint64_t begin = 0; begin < rows.item_ids.size();) {
        const std::uint64_t end = std::min<std::uint64_t>(rows.item_ids.size(), begin + rng() % 9);
        std::vector<std::int64_t> indptr(rows.indptr.begin() + static_cast<std::ptrdiff_t>(begin),
                                         rows.indptr.begin() + static_cast<std::ptrdiff_t>(end) + 1);
        gentrie::SequenceSource chunk = rows.source();
        chunk.values = rows.values.data() + indptr[0];
        for (std::size_t i = indptr.size(); i-- > 0;) indptr[i] -= indptr[0];
        chunk.indptr = indptr.data();
        chunk.num_values = static_cast<std::uint64_t>(indptr.back());
        chunk.num_rows = end - begin;
        chunk.item_ids = rows.item_ids.data() + begin;
        builder.add(chunk);
        begin = end;
      }
      assert(builder.num_rows() == rows.item_ids.size());
      assert(builder.finish()->fingerprint() == whole->fingerprint());
      assert(builder.num_rows() == 0);
    }
  }
}

void test_a_refused_chunk_leaves_no_trace() {
  Rows good, bad;
  good.add({5, 6}, 1);
  bad.add({5, 7}, 2);
  bad.add({5, 1000}, 3);
  gentrie::ChunkedBuilder builder(options(1));
  builder.add(good.source());
  bool refused = false;
  try {
    builder.add(bad.source());
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  assert(refused && builder.num_rows() == 1);
  assert(builder.finish()->fingerprint() == gentrie::build_trie(good.source(), options(1))->fingerprint());
}

void test_memory_budget() {
  MemoryBudget budget(100);
  gentrie::MemoryShare share(&budget, 60, "a test");
  bool refused = false;
  try {
    gentrie::MemoryShare(&budget, 41, "a test");
  } catch (const gentrie::MemoryLimitError& error) {
    refused = std::string(error.what()).find("memory_limit=100") != std::string::npos;
  }
  assert(refused);
  {
    gentrie::MemoryShare moved = std::move(share);
    gentrie::MemoryShare(&budget, 40, "a test");
  }
  gentrie::MemoryShare(&budget, 100, "a test");
}

}  // namespace

int main() {
  char folder[] = "/tmp/gentrie-test-XXXXXX";
  assert(::mkdtemp(folder) != nullptr);
  test_radix_sort();
  test_sort_and_merge(folder);
  test_chunked_builder(folder);
  test_a_refused_chunk_leaves_no_trace();
  test_memory_budget();
  assert(::rmdir(folder) == 0);  // nothing is left in it
  std::puts("5 passed, 0 failed");
}
