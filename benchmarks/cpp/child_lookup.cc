// Nanoseconds of one child lookup: child_lookup FILE [ROUNDS] prints one line a round.
//
// Every (state, valid token) pair of walks from the root along all sequences is looked up, branching places only, in
// random order, so that neither the branch predictor nor the cache knows what comes.

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
  const auto trie = gentrie::load_trie(argv[1]);
  const gentrie::TrieView& view = trie->view();
  std::vector<std::pair<gentrie::State, gentrie::Token>> lookups;
  std::vector<gentrie::Token> tokens;
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
    tokens.clear();
    trie->append_sequence(leaf, &tokens);
    gentrie::State state = gentrie::kRoot;
    for (const gentrie::Token token : tokens) {
      if (gentrie::TrieView::remaining_of(state) == 0) lookups.emplace_back(state, token);
      state = view.advance(state, token);
    }
  }
  std::shuffle(lookups.begin(), lookups.end(), std::mt19937(0));
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  for (int round = 0; round < rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    gentrie::State sum = 0;
    for (const auto& [state, token] : lookups) sum += view.advance(state, token);
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    std::printf("%.3f %zu %lld\n", taken.count() / static_cast<double>(lookups.size()), lookups.size(),
                static_cast<long long>(sum));
  }
}
