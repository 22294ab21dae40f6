#include "gentrie/batch.h"

#include <stdexcept>
#include <string>

#include "parallel.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kStatesPerChunk = 1 << 12;
constexpr std::uint64_t kTokensPerChunk = 1 << 14;

State advance_wide(const TrieView& view, State state, std::int64_t token) {
  if (state < 0) return state;
  return token >= 0 && token < view.vocab_size ? view.advance(state, static_cast<Token>(token)) : kOffTrie;
}

}  // namespace

void check_states(const TrieView& view, const State* states, std::uint64_t count) {
  for (std::uint64_t row = 0; row < count; ++row) {
    if (states[row] == kOffTrie || states[row] == kFreeText || view.contains(states[row])) continue;
    throw std::invalid_argument("states[" + std::to_string(row) + "]=" + std::to_string(states[row]) +
                                " is not a state of this trie");
  }
}

void advance_batch(const TrieView& view, const State* states, const std::int64_t* tokens, State* out,
                   std::uint64_t count, int num_threads) {
  parallel_for(count, num_threads, kStatesPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t i = begin; i < end; ++i) out[i] = advance_wide(view, states[i], tokens[i]);
  });
}

void next_tokens_batch(const TrieView& view, const State* states, std::uint64_t count, std::vector<Token>* tokens,
                       std::vector<std::int64_t>* indptr) {
  indptr->reserve(indptr->size() + count + 1);
  indptr->push_back(static_cast<std::int64_t>(tokens->size()));
  for (std::uint64_t i = 0; i < count; ++i) {
    const State state = states[i];
    if (state >= 0 && TrieView::remaining_of(state) > 0) {
      tokens->push_back(view.next_run_token(state));
    } else if (state >= 0 && !view.is_leaf(state)) {
      const EdgeRange range = view.edges(static_cast<std::uint32_t>(TrieView::target_of(state)));
      for (std::uint32_t edge = range.begin; edge < range.end; ++edge) {
        tokens->push_back(view.token_at(view.edge_token_index(edge)));
      }
    }
    indptr->push_back(static_cast<std::int64_t>(tokens->size()));
  }
}

void append_forced(const TrieView& view, State state, std::vector<Token>* tokens) {
  if (state < 0) return;
  if (state == kRoot) {  // the one node that may have a single child
    const EdgeRange range = view.edges(0);
    if (range.size() != 1) return;
    tokens->push_back(view.token_at(view.edge_token_index(range.begin)));
    state = view.follow(0, range, range.begin);
    if (state < 0) return;
  }
  const std::uint64_t end = view.run_end(TrieView::target_of(state));
  for (std::uint64_t at = end - TrieView::remaining_of(state); at < end; ++at) tokens->push_back(view.run_token(at));
}

void token_states(const TrieView& view, const std::int64_t* tokens, std::uint64_t rows, std::uint64_t length,
                  Token begin_token, const std::int64_t* starts, State* out, int num_threads) {
  const std::uint64_t rows_per_chunk = std::max<std::uint64_t>(1, kTokensPerChunk / std::max<std::uint64_t>(length, 1));
  parallel_for(rows, num_threads, rows_per_chunk, [&](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t row = begin; row < end; ++row) {
      State state = kFreeText;
      for (std::uint64_t i = 0; i < length; ++i) {
        const std::int64_t token = tokens[row * length + i];
        if (starts != nullptr && static_cast<std::int64_t>(i) == starts[row]) state = kRoot;
        if (begin_token != kNoToken && token == begin_token) {
          out[row * length + i] = kFreeText;
          state = kRoot;
          continue;
        }
        out[row * length + i] = state;
        state = advance_wide(view, state, token);
        if (view.is_leaf(state)) state = kFreeText;
      }
    }
  });
}

}  // namespace gentrie
