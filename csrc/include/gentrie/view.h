#ifndef GENTRIE_VIEW_H_
#define GENTRIE_VIEW_H_

#include <algorithm>
#include <cstdint>
#include <utility>

#include "gentrie/packed.h"
#include "gentrie/sorted_search.h"
#include "gentrie/types.h"

namespace gentrie {

/// Half-open range of leaves. Below each node its own leaves are numbered first, in the order of their edges' tokens,
/// then those below its child nodes, in theirs: all below a node are one range, and its own are found by counting
/// edges.
struct LeafRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  std::uint32_t size() const { return end - begin; }
};

/// Half-open range of edges; those of one node are adjacent and sorted by token.
struct EdgeRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  std::uint32_t size() const { return end - begin; }
};

/// The trie's arrays, not owned; trivially copyable. Lookups allocate nothing and do not throw, and no value read from
/// an array is used as an index before it is bounded: a damaged file can give a wrong answer, never a read outside. Nor
/// can it lead in circles: an edge is only followed to a node with a higher number.
///
/// Only branching nodes exist (and the root). An edge carries its first token; the tokens that are forced after it
/// (its run) belong to its target, a node or a leaf. Nodes are numbered level by level, so the k-th edge that leads to
/// a node leads to node k: targets need one bit an edge and a rank. Targets are numbered nodes first, then leaves, and
/// `target | tokens_left << 40` is the State of a place inside the run to that target.
struct TrieView {
  static constexpr std::uint32_t kRemainingShift = 40;
  static constexpr State kTargetMask = (State{1} << kRemainingShift) - 1;
  static constexpr std::uint64_t kMaxSequenceLength = (std::uint64_t{1} << 23) - 1;
  static constexpr std::uint64_t kRunBlock = 64;  ///< targets that share one entry of run_blocks

  std::uint32_t num_nodes = 0;
  std::uint32_t num_edges = 0;
  std::uint32_t num_leaves = 0;
  std::uint64_t num_items = 0;
  std::uint64_t num_run_tokens = 0;
  std::int32_t vocab_size = 0;
  Token end_token = kNoToken;
  std::uint32_t num_tokens = 0;  ///< distinct tokens, the length of `vocabulary`
  std::uint32_t max_depth = 0;   ///< tokens of the longest sequence, the end token included
  std::uint32_t max_branching = 0;
  std::uint32_t edge_token_bytes = 1;
  std::uint32_t item_id_bytes = 4;

  const Token* vocabulary = nullptr;           ///< [num_tokens] distinct token ids, ascending
  RankedTokens token_index;                    ///< of the vocabulary, where its tokens do not lie far apart
  RankedTokens root_index;                     ///< of the root's edges, likewise
  const std::uint32_t* edge_indptr = nullptr;  ///< [num_nodes + 1]
  const void* edge_tokens = nullptr;           ///< [num_edges] indices into vocabulary, 1, 2 or 4 bytes
  RankedBitmap edge_to_node;                   ///< [num_edges] 1: leads to a node, 0: to a leaf
  const std::uint32_t* leaf_begin = nullptr;   ///< [num_nodes] first leaf below each node
  const std::uint32_t* leaf_prefix = nullptr;  ///< [num_nodes + 1] sum over earlier nodes of (leaves below - 1)
  PackedView run_tokens;                       ///< [num_run_tokens] indices into vocabulary, target after target
  const std::uint64_t* run_blocks = nullptr;   ///< [num_targets / 64 + 1] where each block of targets starts
  PackedView run_offsets;                      ///< [num_targets + 1] start of each run after its block's
  const std::uint32_t* item_indptr = nullptr;  ///< [num_leaves + 1]; nullptr: leaf i is item entry i
  const void* item_ids = nullptr;              ///< [num_items] 4 or 8 bytes, ascending within a leaf

  std::uint64_t num_targets() const { return std::uint64_t{num_nodes} + num_leaves; }

  // --- States ---------------------------------------------------------------------------------------------------

  static State make_state(std::uint64_t target, std::uint64_t remaining) {
    return static_cast<State>(target | remaining << kRemainingShift);
  }
  static std::uint64_t target_of(State state) { return static_cast<std::uint64_t>(state & kTargetMask); }
  static std::uint64_t remaining_of(State state) { return static_cast<std::uint64_t>(state) >> kRemainingShift; }

  /// Whether `state` (not negative) can have come from this trie.
  bool contains(State state) const {
    return state >= 0 && target_of(state) < num_targets() && remaining_of(state) <= run_length(target_of(state));
  }
  bool is_leaf(State state) const { return state >= 0 && remaining_of(state) == 0 && target_of(state) >= num_nodes; }
  std::uint32_t leaf_of(State state) const { return static_cast<std::uint32_t>(target_of(state) - num_nodes); }

  // --- Runs -----------------------------------------------------------------------------------------------------

  std::uint64_t run_begin(std::uint64_t target) const {
    return std::min(run_blocks[target / kRunBlock] + run_offsets[target], num_run_tokens);
  }
  std::uint64_t run_end(std::uint64_t target) const { return run_begin(target + 1); }
  std::uint64_t run_length(std::uint64_t target) const {
    const std::uint64_t begin = run_begin(target), end = run_end(target);
    return end > begin ? end - begin : 0;
  }
  /// Token at `position` of all runs; `position` is bounded here.
  Token run_token(std::uint64_t position) const { return token_at(run_tokens[std::min(position, num_run_tokens)]); }
  /// The next token of a state inside a run (remaining > 0).
  Token next_run_token(State state) const { return run_token(run_end(target_of(state)) - remaining_of(state)); }

  // --- Tokens and edges -----------------------------------------------------------------------------------------

  /// Bounded on both sides: what it returns indexes logits and bitmasks.
  Token token_at(std::uint32_t index) const {
    const auto token = static_cast<std::uint32_t>(vocabulary[std::min(index, num_tokens - 1)]);
    return static_cast<Token>(std::min(token, static_cast<std::uint32_t>(vocab_size - 1)));
  }

  /// Index of `token` in the vocabulary, or num_tokens if the catalog does not use it.
  std::uint32_t index_of(Token token) const {
    if (token_index.range > 0) return token_index.find(token, num_tokens);
    const auto at = [this](std::uint32_t index) { return vocabulary[index]; };
    return find_ascending(0, num_tokens, at, token, num_tokens);
  }

  EdgeRange edges(std::uint32_t node) const {
    const std::uint32_t begin = std::min(edge_indptr[node], num_edges);
    return {begin, std::max(begin, std::min(edge_indptr[node + 1], num_edges))};
  }

  std::uint32_t edge_token_index(std::uint32_t edge) const {
    switch (edge_token_bytes) {
      case 1:
        return static_cast<const std::uint8_t*>(edge_tokens)[edge];
      case 2:
        return static_cast<const std::uint16_t*>(edge_tokens)[edge];
      default:
        return static_cast<const std::uint32_t*>(edge_tokens)[edge];
    }
  }

  /// The edge of `node`, whose edges are `range`, that begins with `token`, or range.end.
  std::uint32_t find_edge(std::uint32_t node, EdgeRange range, Token token) const {
    if (node == 0 && root_index.range > 0) return root_index.find(token, range.end);
    const std::uint32_t index = index_of(token);
    if (index == num_tokens) return range.end;
    switch (edge_token_bytes) {
      case 1:
        return find_edge_in(static_cast<const std::uint8_t*>(edge_tokens), range, index);
      case 2:
        return find_edge_in(static_cast<const std::uint16_t*>(edge_tokens), range, index);
      default:
        return find_edge_in(static_cast<const std::uint32_t*>(edge_tokens), range, index);
    }
  }

  /// The node that the first node-edge at or after `edge` leads to.
  std::uint32_t next_node(std::uint32_t edge) const { return std::min(1 + edge_to_node.rank(edge), num_nodes); }

  /// The leaf that `edge` of `node`, whose edges begin at `begin`, leads to if it leads to no node: as many leaves of
  /// the node lie before it as edges that lead to none.
  std::uint32_t leaf_at(std::uint32_t node, std::uint32_t begin, std::uint32_t edge) const {
    return leaf_begin[node] + (edge - begin) - (next_node(edge) - next_node(begin));  // modulo 2^32
  }
  LeafRange leaves_of_edge(std::uint32_t node, std::uint32_t edge) const {
    if (!edge_to_node.test(edge)) return bounded(leaf_at(node, edges(node).begin, edge), 1);
    const std::uint32_t child = next_node(edge);
    return child < num_nodes ? bounded(leaf_begin[child], leaves_below_node(child)) : LeafRange{};
  }
  /// First leaf below the child nodes of `node`: behind its own.
  std::uint32_t leaf_begin_of_children(std::uint32_t node) const {
    const EdgeRange range = edges(node);
    return leaf_at(node, range.begin, range.end);
  }
  /// The edge of `node` that `leaf` lies below.
  std::uint32_t edge_above(std::uint32_t node, std::uint32_t leaf) const {
    const EdgeRange range = edges(node);
    if (leaf < leaf_begin_of_children(node)) {
      return last_at_most(range.begin, range.end, leaf,
                          [&](std::uint32_t edge) { return leaf_at(node, range.begin, edge); });
    }
    const std::uint32_t child = last_at_most(next_node(range.begin), next_node(range.end), leaf,
                                             [this](std::uint32_t number) { return leaf_begin[number]; });
    return last_at_most(range.begin, range.end, child, [this](std::uint32_t edge) { return next_node(edge); });
  }
  std::uint32_t leaves_below_node(std::uint32_t node) const {
    return node < num_nodes ? leaf_prefix[node + 1] - leaf_prefix[node] + 1 : 0;
  }

  /// The state after taking `edge` of `node`, whose edges are `range`: its target with the whole run to write.
  State follow(std::uint32_t node, EdgeRange range, std::uint32_t edge) const {
    std::uint64_t target;
    if (edge_to_node.test(edge)) {
      target = next_node(edge);
      if (target >= num_nodes || target <= node) return kOffTrie;
    } else {
      const std::uint32_t leaf = leaf_at(node, range.begin, edge);
      if (leaf >= num_leaves) return kOffTrie;
      target = std::uint64_t{num_nodes} + leaf;
    }
    return make_state(target, run_length(target));
  }

  /// The state after `token`, or kOffTrie. Free text stays free text. A non-negative `state` must be contained.
  ///
  /// Cache lines that wait for each other: edge_indptr, with token_index and leaf_begin beside it; edge_tokens around
  /// the edge, with edge_to_node beside it; run_offsets, with run_blocks beside it. The root has an index of its own in
  /// the place of the first two.
  State advance(State state, Token token) const {
    if (state < 0) return state;
    const std::uint64_t target = target_of(state);
    if (remaining_of(state) > 0) {
      return next_run_token(state) == token ? state - (State{1} << kRemainingShift) : kOffTrie;
    }
    if (target >= num_nodes) return kOffTrie;  // a complete sequence has no continuation
    const std::uint32_t node = static_cast<std::uint32_t>(target);
    const EdgeRange range = edges(node);
    // Which edge it will be is not known yet, but few nodes have edges beyond these lines, and of wide ones the search
    // guesses the place: they come while the tokens are searched, not after.
    __builtin_prefetch(edge_to_node.words + (range.begin >> 5));
    __builtin_prefetch(edge_to_node.words + (range.end >> 5));
    __builtin_prefetch(leaf_begin + node);
    const std::uint32_t edge = find_edge(node, range, token);
    return edge == range.end ? kOffTrie : follow(node, range, edge);
  }

  /// Follows `tokens` until one leads to a leaf or off the trie. `*used` is how many were valid; the state is kOffTrie
  /// if one was not.
  template <typename Id>
  State walk(State state, const Id* tokens, std::uint64_t count, std::uint64_t* used) const {
    std::uint64_t at = 0;
    while (at < count && state >= 0 && !is_leaf(state)) {
      std::uint64_t remaining = remaining_of(state);
      if (remaining == 0) {
        const std::int64_t token = tokens[at];
        state = token >= 0 && token < vocab_size ? advance(state, static_cast<Token>(token)) : kOffTrie;
        at += state >= 0 ? 1 : 0;
        continue;
      }
      std::uint64_t position = run_end(target_of(state)) - remaining;
      while (remaining > 0 && at < count && run_token(position) == tokens[at]) ++position, ++at, --remaining;
      const bool is_off = remaining > 0 && at < count;
      state = is_off ? kOffTrie : make_state(target_of(state), remaining);
    }
    *used = at;
    return state;
  }

  // --- What lies below ------------------------------------------------------------------------------------------

  /// Leaves that `state` (contained) can still reach.
  LeafRange leaves_below(State state) const {
    const std::uint64_t target = target_of(state);
    if (target >= num_nodes) return bounded(static_cast<std::uint32_t>(target - num_nodes), 1);
    const std::uint32_t node = static_cast<std::uint32_t>(target);
    return bounded(leaf_begin[node], leaves_below_node(node));
  }

  /// Item entries of one leaf, as a range into item_ids.
  std::pair<std::uint64_t, std::uint64_t> items_of_leaf(std::uint32_t leaf) const {
    if (item_indptr == nullptr) {
      const std::uint64_t begin = std::min<std::uint64_t>(leaf, num_items);
      return {begin, std::min<std::uint64_t>(begin + 1, num_items)};
    }
    const std::uint64_t begin = std::min<std::uint64_t>(item_indptr[leaf], num_items);
    return {begin, std::max(begin, std::min<std::uint64_t>(item_indptr[leaf + 1], num_items))};
  }
  /// Item entries of adjacent leaves, which are adjacent too. Where single leaves of a damaged file claim the same
  /// entries, each entry is still in the range once.
  std::pair<std::uint64_t, std::uint64_t> items_of_leaves(LeafRange leaves) const {
    if (leaves.size() == 0) return {0, 0};
    const std::uint64_t begin = items_of_leaf(leaves.begin).first;
    return {begin, std::max(begin, items_of_leaf(leaves.end - 1).second)};
  }
  std::int64_t item_id(std::uint64_t entry) const {
    return item_id_bytes == 4 ? static_cast<const std::int32_t*>(item_ids)[entry]
                              : static_cast<const std::int64_t*>(item_ids)[entry];
  }

 private:
  LeafRange bounded(std::uint32_t begin, std::uint32_t count) const {
    begin = std::min(begin, num_leaves);
    return {begin, begin + std::min(count, num_leaves - begin)};
  }

  /// The last of [begin, end) whose number, of those that at() gives in ascending order, is at most `limit`; or begin.
  template <typename At>
  static std::uint32_t last_at_most(std::uint32_t begin, std::uint32_t end, std::uint32_t limit, const At& at) {
    while (end > begin + 1) {
      const std::uint32_t middle = begin + (end - begin) / 2;
      (at(middle) <= limit ? begin : end) = middle;
    }
    return begin;
  }

  template <typename T>
  std::uint32_t find_edge_in(const T* indices, EdgeRange range, std::uint32_t index) const {
    const auto on_guess = [this, range](std::uint32_t low, std::uint32_t high) __attribute__((always_inline)) {
      __builtin_prefetch(edge_to_node.words + ((range.begin + low) >> 5));
      __builtin_prefetch(edge_to_node.words + ((range.begin + high) >> 5));
    };
    return range.begin + find_distinct(indices + range.begin, range.size(), index, num_tokens, on_guess);
  }
};

}  // namespace gentrie

#endif  // GENTRIE_VIEW_H_
