// Filters against sets of item ids, and over files whose bodies were altered: wrong answers are allowed there, reads
// outside are not. Run it under AddressSanitizer.

#include <unistd.h>

#include <cassert>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "gentrie/builder.h"
#include "gentrie/file.h"
#include "gentrie/filter.h"

namespace {

using gentrie::ItemFilter;
using gentrie::State;
using gentrie::Token;
using Ids = std::set<std::int64_t>;
using TriePtr = std::shared_ptr<const gentrie::Trie>;

constexpr std::int64_t kVocabSize = 40;
constexpr std::uint64_t kLength = 4;

/// Short sequences that share prefixes; ids near each other or far apart, on several sequences or on one.
TriePtr random_trie(std::mt19937& rng, Ids* ids) {
  const std::size_t rows = 1 + rng() % 300;
  const std::int64_t spread = rng() % 2 ? 1 : std::int64_t{1} << 40, num_ids = 1 + rng() % 400;
  std::vector<std::int64_t> values(rows * kLength), item_ids(rows);
  for (std::int64_t& value : values) value = rng() % (rng() % 2 ? 3 : kVocabSize);
  for (std::int64_t& id : item_ids) id = (static_cast<std::int64_t>(rng() % num_ids) - 5) * spread;
  *ids = Ids(item_ids.begin(), item_ids.end());
  gentrie::SequenceSource source;
  source.values = values.data();
  source.length = kLength;
  source.num_rows = rows;
  source.num_values = values.size();
  source.item_ids = item_ids.data();
  gentrie::BuildOptions options;
  options.vocab_size = kVocabSize;
  options.num_threads = 1;
  return gentrie::build_trie(source, options);
}

Ids some_of(const Ids& ids, std::mt19937& rng) {
  Ids chosen;
  for (const std::int64_t id : ids) {
    if (rng() % 3) chosen.insert(id);
  }
  chosen.insert(999);
  return chosen;
}

ItemFilter::Ptr filter_of(const TriePtr& trie, const Ids& ids) {
  const std::vector<std::int64_t> list(ids.begin(), ids.end());
  return ItemFilter::from_item_ids(trie, list.data(), list.size());
}

ItemFilter::Ptr denied(const ItemFilter& filter, const Ids& ids) {
  const std::vector<std::int64_t> list(ids.begin(), ids.end());
  return filter.deny(list.data(), list.size());
}

/// States of the trie, found by walking what the filter leaves of it, and what a filter says of each.
void walk(const ItemFilter& filter) {
  const gentrie::TrieView& view = filter.trie().view();
  std::vector<State> states{gentrie::kRoot, gentrie::kOffTrie};
  for (std::size_t i = 0; i < states.size() && states.size() < 300; ++i) {
    if (states[i] >= 0 && !view.contains(states[i])) continue;
    std::vector<Token> tokens;
    std::vector<std::int64_t> indptr;
    std::int64_t count = 0;
    gentrie::next_tokens_batch(filter, &states[i], 1, &tokens, &indptr);
    gentrie::count_below(filter, &states[i], 1, &count);
    for (const Token token : tokens) states.push_back(view.advance(states[i], token));
  }
}

void check(const ItemFilter& filter, const std::function<bool(std::int64_t)>& allows) {
  const gentrie::TrieView& view = filter.trie().view();
  std::uint32_t before = 0;
  std::uint64_t num_items = 0;
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
    const auto [begin, end] = view.items_of_leaf(leaf);
    std::uint32_t allowed = 0;
    for (std::uint64_t entry = begin; entry < end; ++entry) {
      assert(filter.allows_entry(entry) == allows(view.item_id(entry)));
      allowed += filter.allows_entry(entry) ? 1 : 0;
    }
    assert(filter.num_items_of(leaf) == allowed);
    assert(filter.allows_leaf(leaf) == (allowed > 0));
    assert(filter.rank(leaf) == before);
    before += allowed > 0 ? 1 : 0;
    num_items += allowed;
  }
  assert(filter.num_sequences() == before);
  assert(filter.num_items() == num_items);
}

void test_against_sets() {
  std::mt19937 rng(1);
  for (int round = 0; round < 100; ++round) {
    Ids ids;
    const TriePtr trie = random_trie(rng, &ids);
    const Ids a = some_of(ids, rng), b = some_of(ids, rng), c = some_of(ids, rng);
    const ItemFilter::Ptr in_a = filter_of(trie, a), in_b = filter_of(trie, b);
    check(*in_a, [&](std::int64_t id) { return a.count(id) > 0; });
    check(*(*in_a & *in_b), [&](std::int64_t id) { return a.count(id) > 0 && b.count(id) > 0; });
    check(*(*in_a | *in_b), [&](std::int64_t id) { return a.count(id) > 0 || b.count(id) > 0; });
    check(*(*in_a - *in_b), [&](std::int64_t id) { return a.count(id) > 0 && b.count(id) == 0; });
    check(*~*in_a, [&](std::int64_t id) { return a.count(id) == 0; });
    const ItemFilter::Ptr less = denied(*denied(*in_a, b), c);
    check(*less, [&](std::int64_t id) { return a.count(id) > 0 && b.count(id) + c.count(id) == 0; });
    check(*~*less, [&](std::int64_t id) { return a.count(id) == 0 || b.count(id) + c.count(id) > 0; });
    walk(*less);
  }
}

void test_damaged_files(const std::string& path) {
  std::mt19937 rng(2);
  Ids ids;
  for (int round = 0; round < 200; ++round) {
    if (round % 20 == 0) gentrie::save_trie(*random_trie(rng, &ids), path, {});
    std::ifstream in(path, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    std::uint64_t header = 0;
    for (int i = 7; i >= 0; --i) header = header << 8 | static_cast<unsigned char>(bytes[i]);
    for (int change = 0; change < 1 << (round % 9); ++change) {
      bytes[8 + header + rng() % (bytes.size() - 8 - header)] = static_cast<char>(rng() % 3 == 0 ? 0xFF : rng());
    }
    const std::string altered = path + ".altered";
    std::ofstream(altered, std::ios::binary) << bytes;
    gentrie::LoadOptions unverified;
    unverified.verify = gentrie::Verify::kNever;
    const TriePtr trie = gentrie::load_trie(altered, unverified);
    const ItemFilter::Ptr filter = filter_of(trie, some_of(ids, rng));
    walk(*filter);
    walk(*denied(*~*filter, some_of(ids, rng)));
    const std::vector<std::uint8_t> mask(2000, 1);
    try {
      walk(*ItemFilter::from_mask(trie, mask.data(), mask.size(), 2));
    } catch (const std::invalid_argument&) {  // an id that the mask does not reach
    }
    walk(*ItemFilter::from_leaf_order(trie, mask.data(), trie->view().num_items));
    ::unlink(altered.c_str());
  }
}

}  // namespace

int main() {
  char folder[] = "/tmp/gentrie-filter-XXXXXX";
  assert(::mkdtemp(folder) != nullptr);
  const std::string path = std::string(folder) + "/trie.safetensors";
  test_against_sets();
  test_damaged_files(path);
  ::unlink(path.c_str());
  ::rmdir(folder);
  std::puts("2 passed, 0 failed");
}
