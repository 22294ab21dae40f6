// Nanoseconds of one child lookup: child_lookup FILE [ROUNDS] prints one line a round.
//
// Every (state, valid token) pair of walks from the root along all sequences, or along two million random ones where
// there are more, is looked up, branching places only, in random order, so that neither the branch predictor nor the
// cache knows what comes. Each lookup waits for the one before: what is measured is its latency, as in a walk.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

#include "gentrie/file.h"

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: child_lookup FILE [ROUNDS]\n"), 2;
  gentrie::LoadOptions options;
  options.prefault = true;
  const auto trie = gentrie::load_trie(argv[1], options);
  const gentrie::TrieView& view = trie->view();
  std::mt19937 random(0);
  constexpr std::uint32_t kMaxSequences = 2'000'000;
  std::vector<std::uint32_t> leaves(std::min(view.num_leaves, kMaxSequences));
  std::uniform_int_distribution<std::uint32_t> any_leaf(0, view.num_leaves - 1);
  for (std::uint32_t i = 0; i < leaves.size(); ++i) leaves[i] = view.num_leaves > kMaxSequences ? any_leaf(random) : i;

  std::vector<std::pair<gentrie::State, gentrie::Token>> lookups;
  std::vector<gentrie::Token> tokens;
  for (const std::uint32_t leaf : leaves) {
    tokens.clear();
    trie->append_sequence(leaf, &tokens);
    gentrie::State state = gentrie::kRoot;
    for (const gentrie::Token token : tokens) {
      if (gentrie::TrieView::remaining_of(state) == 0) lookups.emplace_back(state, token);
      state = view.advance(state, token);
    }
  }
  std::shuffle(lookups.begin(), lookups.end(), random);
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  for (int round = 0; round < rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    gentrie::State sum = 0, found = 0;
    for (const auto& [state, token] : lookups) {
      found = view.advance(state + (found >> 63), token);  // a valid token's state is never negative: adds 0, but waits
      sum += found;
    }
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    std::printf("%.3f %zu %lld\n", taken.count() / static_cast<double>(lookups.size()), lookups.size(),
                static_cast<long long>(sum));
  }
}
