// One trie, its filters and its file in many threads at once. Run it under ThreadSanitizer: cmake --workflow --preset
// thread.

#include <unistd.h>

#include <atomic>
#include <cassert>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gentrie/batch.h"
#include "gentrie/builder.h"
#include "gentrie/file.h"
#include "gentrie/history.h"
#include "gentrie/matcher.h"

namespace {

constexpr std::uint64_t kRows = 40'000, kLength = 4;
constexpr gentrie::Token kBegin = 997, kEos = 998;
constexpr int kNumThreads = 4;

std::vector<std::int64_t> random_values() {
  std::mt19937 rng(0);
  std::vector<std::int64_t> values(kRows * kLength);
  for (std::int64_t& value : values) value = rng() % 60;
  return values;
}

std::shared_ptr<const gentrie::Trie> build(const std::vector<std::int64_t>& values, int num_threads) {
  gentrie::SequenceSource source;
  source.values = values.data();
  source.length = kLength;
  source.num_rows = kRows;
  source.num_values = values.size();
  gentrie::BuildOptions options;
  options.vocab_size = 1000;
  options.num_threads = num_threads;
  return gentrie::build_trie(source, options);
}

/// Runs body(thread) side by side.
template <typename Body>
void side_by_side(const Body& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) threads.emplace_back(body, t);
  for (std::thread& thread : threads) thread.join();
}

/// A bit of everything, the same for the same seed; a checksum of what came out.
std::uint64_t use(const std::shared_ptr<const gentrie::Trie>& trie, unsigned seed) {
  std::mt19937 rng(seed);
  const gentrie::TrieView& view = trie->view();
  std::uint64_t sum = 0;
  std::vector<std::int64_t> ids(50);
  for (std::int64_t& id : ids) id = rng() % kRows;
  const auto filter = gentrie::ItemFilter::from_item_ids(trie, ids.data(), ids.size())->complement();
  const auto fewer = filter->deny(ids.data(), 5);
  const auto constraint = std::make_shared<const gentrie::Constraint>(
      trie, gentrie::ConstraintOptions{kBegin, {kEos}, gentrie::Unique::kSequence}, fewer);
  gentrie::Matcher matcher(constraint);
  std::vector<std::int32_t> mask(32);
  for (int item = 0; item < 20; ++item) {
    assert(matcher.accept(kBegin));
    std::vector<gentrie::Token> allowed;
    while (matcher.allowed(&allowed) == gentrie::Verdict::kItem) {
      const gentrie::Token token = allowed[rng() % allowed.size()];
      assert(matcher.accept(token));
      sum = sum * 31 + static_cast<std::uint64_t>(token);
      gentrie::fill_bitmask(matcher, mask.data(), mask.size());
      allowed.clear();
    }
  }
  matcher.rollback(matcher.num_accepted());
  const std::vector<gentrie::State> roots(200, gentrie::kRoot);
  std::vector<gentrie::Token> next;
  std::vector<std::int64_t> indptr;
  gentrie::next_tokens_batch(view, roots.data(), roots.size(), &next, &indptr);
  std::vector<gentrie::State> states(roots.size());
  const std::vector<std::int64_t> tokens(roots.size(), 7);
  gentrie::advance_batch(view, roots.data(), tokens.data(), states.data(), roots.size(), 2);
  for (const gentrie::State state : states) sum = sum * 31 + static_cast<std::uint64_t>(state);
  return sum * 31 + next.size() + fewer->num_items();
}

}  // namespace

int main() {
  const std::vector<std::int64_t> values = random_values();
  const auto trie = build(values, 3);
  const std::string path = "test_shared_" + std::to_string(::getpid()) + ".safetensors";
  gentrie::save_trie(*trie, path, {});

  std::vector<std::uint64_t> expected(kNumThreads);
  for (int t = 0; t < kNumThreads; ++t) expected[static_cast<std::size_t>(t)] = use(trie, static_cast<unsigned>(t));
  // The first use of a loaded trie makes its item index: all at once.
  const auto loaded = gentrie::load_trie(path);
  side_by_side([&](int t) { assert(use(loaded, static_cast<unsigned>(t)) == expected[static_cast<std::size_t>(t)]); });

  side_by_side([&](int t) { assert(build(values, 1 + t)->fingerprint() == trie->fingerprint()); });
  side_by_side([&](int t) {
    for (int i = 0; i < 3; ++i) {
      if (t % 2 == 0) gentrie::save_trie(*trie, path, {{"writer", std::to_string(t)}});
      gentrie::LoadOptions options;
      options.verify = gentrie::Verify::kAlways;
      options.copy = t % 2 == 0;
      assert(gentrie::load_trie(path, options)->fingerprint() == trie->fingerprint());
    }
  });

  // A live catalog: whoever reads keeps the version that it took.
  std::shared_ptr<const gentrie::Trie> live = trie;
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int i = 0; i < 5; ++i) std::atomic_store(&live, gentrie::load_trie(path));
    done = true;
  });
  side_by_side([&](int t) {
    do {
      assert(use(std::atomic_load(&live), static_cast<unsigned>(t)) == expected[static_cast<std::size_t>(t)]);
    } while (!done);
  });
  writer.join();
  ::unlink(path.c_str());
  return 0;
}
