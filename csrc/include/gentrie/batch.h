#ifndef GENTRIE_BATCH_H_
#define GENTRIE_BATCH_H_

#include <cstdint>
#include <vector>

#include "gentrie/view.h"

namespace gentrie {

/// Whether `state` is one that this trie can have produced, or kOffTrie or kFreeText.
inline bool is_state(const TrieView& view, State state) {
  return state == kOffTrie || state == kFreeText || view.contains(state);
}
[[noreturn]] void refuse_state(State state, std::uint64_t row);

/// Refuses states that this trie cannot have produced. \throws std::invalid_argument naming the first such row
void check_states(const TrieView& view, const State* states, std::uint64_t count);

/// One of `states`, read once, so that another thread may write to them meanwhile. \throws as check_states() does
inline State checked_state(const TrieView& view, const State* states, std::uint64_t row) {
  const State state = __atomic_load_n(states + row, __ATOMIC_RELAXED);
  if (!is_state(view, state)) refuse_state(state, row);
  return state;
}

/// out[i] = view.advance(states[i], tokens[i]). \throws as check_states() does
void advance_batch(const TrieView& view, const State* states, const std::int64_t* tokens, State* out,
                   std::uint64_t count, int num_threads, const Poll& poll = {});

/// Valid next tokens of each state, one after the other; row i's are tokens[indptr[i] .. indptr[i + 1]). None for
/// leaves and for negative states. \throws as check_states() does
void next_tokens_batch(const TrieView& view, const State* states, std::uint64_t count, std::vector<Token>* tokens,
                       std::vector<std::int64_t>* indptr, const Poll& poll = {});

/// Appends the tokens that are the only continuation, one after the other.
void append_forced(const TrieView& view, State state, std::vector<Token>* tokens);

/// For each token the state it is chosen from: kFreeText outside items, kOffTrie once an item has left the trie. A row
/// holds items behind each `begin_token`, or, where that is kNoToken, one item from starts[row] on.
void token_states(const TrieView& view, const std::int64_t* tokens, std::uint64_t rows, std::uint64_t length,
                  Token begin_token, const std::int64_t* starts, State* out, int num_threads, const Poll& poll = {});

}  // namespace gentrie

#endif  // GENTRIE_BATCH_H_
