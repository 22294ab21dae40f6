#ifndef GENTRIE_BATCH_H_
#define GENTRIE_BATCH_H_

#include <cstdint>
#include <vector>

#include "gentrie/view.h"

namespace gentrie {

/// Refuses states that this trie cannot have produced. \throws std::invalid_argument naming the first such row
void check_states(const TrieView& view, const State* states, std::uint64_t count);

/// out[i] = view.advance(states[i], tokens[i]); checked states.
void advance_batch(const TrieView& view, const State* states, const std::int64_t* tokens, State* out,
                   std::uint64_t count, int num_threads);

/// Valid next tokens of each state, one after the other; row i's are tokens[indptr[i] .. indptr[i + 1]). None for
/// leaves and for negative states; checked states.
void next_tokens_batch(const TrieView& view, const State* states, std::uint64_t count, std::vector<Token>* tokens,
                       std::vector<std::int64_t>* indptr);

/// Appends the tokens that are the only continuation, one after the other.
void append_forced(const TrieView& view, State state, std::vector<Token>* tokens);

/// For each token the state it is chosen from: kFreeText outside items, kOffTrie once an item has left the trie. A row
/// holds items behind each `begin_token`, or, where that is kNoToken, one item from starts[row] on.
void token_states(const TrieView& view, const std::int64_t* tokens, std::uint64_t rows, std::uint64_t length,
                  Token begin_token, const std::int64_t* starts, State* out, int num_threads);

}  // namespace gentrie

#endif  // GENTRIE_BATCH_H_
