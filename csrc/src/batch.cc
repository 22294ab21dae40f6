#include "gentrie/batch.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "parallel.h"
#include "poll.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kStatesPerChunk = 1 << 12;
constexpr std::uint64_t kTokensPerChunk = 1 << 14;

State advance_wide(const TrieView& view, State state, std::int64_t token) {
  if (state < 0) return state;
  return token >= 0 && token < view.vocab_size ? view.advance(state, static_cast<Token>(token)) : kOffTrie;
}

}  // namespace

void refuse_state(State state, std::uint64_t row) {
  throw std::invalid_argument("states[" + std::to_string(row) + "]=" + std::to_string(state) +
                              " is not a state of this trie");
}

void check_states(const TrieView& view, const State* states, std::uint64_t count) {
  for (std::uint64_t row = 0; row < count; ++row) checked_state(view, states, row);
}

void advance_batch(const TrieView& view, const State* states, const std::int64_t* tokens, State* out,
                   std::uint64_t count, int num_threads, const Poll& poll) {
  std::atomic<std::uint64_t> first_bad{count};
  parallel_for(
      count, num_threads, kStatesPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t i = begin; i < end; ++i) {
          const State state = __atomic_load_n(states + i, __ATOMIC_RELAXED);
          if (!is_state(view, state)) {
            lower_to(&first_bad, i);
            return;
          }
          out[i] = advance_wide(view, state, __atomic_load_n(tokens + i, __ATOMIC_RELAXED));
        }
      },
      as_tick(poll));
  if (first_bad < count) refuse_state(states[first_bad], first_bad);
}

void next_tokens_batch(const TrieView& view, const State* states, std::uint64_t count, std::vector<Token>* tokens,
                       std::vector<std::int64_t>* indptr, const Poll& poll) {
  const std::uint64_t before = indptr->size();
  indptr->resize(before + count + 1);
  (*indptr)[before] = static_cast<std::int64_t>(tokens->size());
  std::int64_t* const ends = indptr->data() + before + 1;
  const auto edges_of = [&view](State state) {
    return state >= 0 && TrieView::remaining_of(state) == 0 && !view.is_leaf(state)
               ? view.edges(static_cast<std::uint32_t>(TrieView::target_of(state)))
               : EdgeRange{};
  };
  StepPoll polled(poll);
  std::uint64_t total = tokens->size();
  for (std::uint64_t i = 0; i < count; ++i, polled()) {
    const State state = checked_state(view, states, i);
    ends[i] = state;  // until its end is known
    total += state >= 0 && TrieView::remaining_of(state) > 0 ? 1 : edges_of(state).size();
  }
  tokens->reserve(total);  // no copies of what may be large
  for (std::uint64_t i = 0; i < count; ++i) {
    const State state = ends[i];
    if (state >= 0 && TrieView::remaining_of(state) > 0) {
      tokens->push_back(view.next_run_token(state));
    } else {
      const EdgeRange range = edges_of(state);
      for (std::uint32_t edge = range.begin; edge < range.end; ++edge) {
        tokens->push_back(view.token_at(view.edge_token_index(edge)));
      }
      polled(range.size());
    }
    ends[i] = static_cast<std::int64_t>(tokens->size());
    polled();
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
                  Token begin_token, const std::int64_t* starts, State* out, int num_threads, const Poll& poll) {
  const std::uint64_t rows_per_chunk = std::max<std::uint64_t>(1, kTokensPerChunk / std::max<std::uint64_t>(length, 1));
  const auto follow_row = [&](std::uint64_t row) {
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
  };
  parallel_for(
      rows, num_threads, rows_per_chunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t row = begin; row < end; ++row) follow_row(row);
      },
      as_tick(poll));
}

}  // namespace gentrie
