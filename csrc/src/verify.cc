#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "gentrie/builder.h"
#include "gentrie/file.h"
#include "parallel.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kPerChunk = std::uint64_t{1} << 16;

[[noreturn]] void contradiction(const std::string& what) {
  throw FormatError("the arrays contradict each other: " + what);
}
void require(bool holds, const char* what) {
  if (!holds) contradiction(what);
}

constexpr const char* kMisplacedEnd = "end_token_id is not the last token of every sequence, and only that";

/// The end token's index in the vocabulary, or one that is no token's.
std::uint32_t index_of_end(const TrieView& view) {
  return view.end_token == kNoToken ? view.num_tokens : view.index_of(view.end_token);
}

/// Checks nodes [begin, end): tokens ascend, targets are counted right, leaves leave no gap, and the end token is the
/// last of a sequence. Each edge's rank is held against a count that begins with the first edge's, so that parts
/// checked one by one fit together. Returns the most edges of a node.
std::uint32_t check_nodes(const TrieView& view, std::uint32_t begin, std::uint32_t end) {
  const std::uint32_t end_index = index_of_end(view);
  std::uint32_t branching = 0;
  std::uint32_t child = 1 + view.edge_to_node.rank(std::min(view.edge_indptr[begin], view.num_edges));
  for (std::uint32_t node = begin; node < end; ++node) {
    const std::uint32_t first = view.edge_indptr[node], last = view.edge_indptr[node + 1];
    require(last <= view.num_edges && first + (node == 0 ? 1 : 2) <= last, "edge_indptr: a node has too few edges");
    require(node == 0 || node < child, "edge_to_node: a node comes before its parent");
    std::uint32_t own = view.leaf_begin[node], below = view.leaf_begin_of_children(node);
    const std::uint32_t own_end = below;
    for (std::uint32_t edge = first; edge < last; ++edge) {
      const std::uint32_t token = view.edge_token_index(edge);
      require(token < view.num_tokens && (edge == first || token > view.edge_token_index(edge - 1)),
              "edge_tokens are not ascending within a node");
      require(view.edge_to_node.rank(edge) + 1 == child, "edge_to_node has a wrong rank");
      const bool to_node = view.edge_to_node.test(edge);
      const LeafRange leaves = view.leaves_of_edge(node, edge);
      std::uint32_t& next = to_node ? below : own;
      require(leaves.begin == next && leaves.size() > 0, "leaf_begin and leaf_prefix do not fit the edges");
      next = leaves.end;
      child += to_node ? 1 : 0;
      const bool is_last = !to_node && view.run_length(std::uint64_t{view.num_nodes} + leaves.begin) == 0;
      require((token == end_index) == (is_last && view.end_token != kNoToken), kMisplacedEnd);
    }
    require(view.edge_to_node.rank(last) + 1 == child, "edge_to_node has a wrong rank");
    require(own == own_end && below == view.leaves_below(node).end, "leaf_prefix does not fit the edges");
    branching = std::max(branching, last - first);
  }
  return branching;
}

/// Checks the runs of targets [begin, end): they follow each other, and hold the end token where it is the last of a
/// sequence.
void check_runs(const TrieView& view, std::uint64_t begin, std::uint64_t end) {
  const std::uint32_t end_index = index_of_end(view);
  for (std::uint64_t target = begin; target < end; ++target) {
    const std::uint64_t first = view.run_begin(target), last = view.run_end(target);
    require(first <= last, "run_offsets are not ascending");
    const bool ends_sequence = target >= view.num_nodes && view.end_token != kNoToken;
    for (std::uint64_t at = first; at < last; ++at) {
      const std::uint32_t token = view.run_tokens[at];
      require(token < view.num_tokens, "run_tokens holds an index beyond the vocabulary");
      require((token == end_index) == (ends_sequence && at + 1 == last), kMisplacedEnd);
    }
  }
}

void raise_to(std::atomic<std::uint32_t>* greatest, std::uint32_t value) {
  std::uint32_t current = greatest->load(std::memory_order_relaxed);
  while (value > current && !greatest->compare_exchange_weak(current, value)) {
  }
}

/// Tokens of the longest sequence of a trie whose nodes and runs were checked, from the nodes of each level to those of
/// the next.
std::uint32_t longest_sequence(const TrieView& view, int num_threads, const std::function<void(std::uint64_t)>& tick) {
  std::vector<std::uint32_t> depths(view.num_nodes);  // tokens up to where each node branches
  std::atomic<std::uint32_t> longest{0};
  std::uint64_t first = 0, last = 1;
  while (first < last) {
    parallel_for(
        last - first, num_threads, kPerChunk,
        [&](std::uint64_t begin, std::uint64_t end) {
          std::uint64_t deepest = 0;
          for (auto node = static_cast<std::uint32_t>(first + begin); node < first + end; ++node) {
            const EdgeRange range = view.edges(node);
            for (std::uint32_t edge = range.begin; edge < range.end; ++edge) {
              const bool to_node = view.edge_to_node.test(edge);
              const std::uint64_t target = to_node
                                               ? view.next_node(edge)
                                               : std::uint64_t{view.num_nodes} + view.leaf_at(node, range.begin, edge);
              const std::uint64_t depth = depths[node] + 1 + view.run_length(target);
              require(depth <= TrieView::kMaxSequenceLength, "a sequence is too long");
              deepest = std::max(deepest, depth);
              if (to_node) depths[target] = static_cast<std::uint32_t>(depth);
            }
          }
          raise_to(&longest, static_cast<std::uint32_t>(deepest));
        },
        [&](std::uint64_t done) { tick(first + done); });
    const std::uint64_t next = last;
    last = last < view.num_nodes ? view.next_node(view.edge_indptr[last]) : view.num_nodes;
    first = next;
  }
  return longest;
}

void check_vocabulary(const TrieView& view) {
  for (std::uint32_t t = 0; t < view.num_tokens; ++t) {
    require(view.vocabulary[t] >= 0 && view.vocabulary[t] < view.vocab_size &&
                (t == 0 || view.vocabulary[t] > view.vocabulary[t - 1]),
            "vocabulary is not ascending below vocab_size");
  }
}

/// Checks that the items of leaves [begin, end) follow each other and ascend.
void check_items(const TrieView& view, std::uint32_t begin, std::uint32_t end) {
  std::uint64_t entry = view.items_of_leaf(begin).first;
  for (std::uint32_t leaf = begin; leaf < end; ++leaf) {
    const auto [first, last] = view.items_of_leaf(leaf);
    require(first == entry && last > first, "item_indptr does not span the items");
    for (entry = first + 1; entry < last; ++entry) {
      require(view.item_id(entry) > view.item_id(entry - 1), "item_ids are not ascending within a sequence");
    }
  }
  require(entry == (end < view.num_leaves ? view.items_of_leaf(end).first : view.num_items),
          "item_indptr does not span the items");
}

}  // namespace

void verify_trie(const Trie& trie, int num_threads, const std::function<void(double)>& tick) {
  if (num_threads <= 0) num_threads = default_num_threads();
  double share = 0.0;  // of the work done before the loop at hand
  const auto part = [&tick, &share](double size, std::uint64_t count) {
    const double from = share;
    share += size;
    return [&tick, from, size, count](std::uint64_t done) {
      if (tick) tick(from + size * static_cast<double>(done) / static_cast<double>(std::max(count, std::uint64_t{1})));
    };
  };
  const auto poll = part(0.2, 1);
  const auto checksums = checksums_of(trie.arrays(), num_threads, [&poll] { poll(0); });
  if (fingerprint_of(trie.header(), trie.arrays(), checksums) != trie.fingerprint()) {
    throw FormatError("an array was altered: the checksums differ");
  }
  const TrieView& view = trie.view();
  check_vocabulary(view);
  require(view.end_token == kNoToken || view.index_of(view.end_token) < view.num_tokens, kMisplacedEnd);
  require(view.edge_indptr[0] == 0 && view.edge_indptr[view.num_nodes] == view.num_edges,
          "edge_indptr does not span the edges");
  require(view.edge_to_node.rank(0) == 0 && view.edge_to_node.rank(view.num_edges) + 1 == view.num_nodes,
          "edge_to_node does not lead to every node");
  require(view.leaves_below(kRoot).begin == 0 && view.leaves_below(kRoot).end == view.num_leaves,
          "leaf_prefix does not fit the edges");
  std::atomic<std::uint32_t> branching{0};
  parallel_for(
      view.num_nodes, num_threads, kPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        raise_to(&branching, check_nodes(view, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)));
      },
      part(0.2, view.num_nodes));
  require(branching == view.max_branching, "max_branching is not the most edges of a node");
  require(view.run_begin(0) == 0 && view.run_end(0) == 0 && view.run_begin(view.num_targets()) == view.num_run_tokens,
          "run_offsets do not span the run tokens");
  parallel_for(
      view.num_targets(), num_threads, kPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) { check_runs(view, begin, end); }, part(0.3, view.num_targets()));
  require(longest_sequence(view, num_threads, part(0.1, view.num_nodes)) == view.max_depth,
          "max_depth is not the length of the longest sequence");
  require(view.items_of_leaf(0).first == 0, "item_indptr does not span the items");
  parallel_for(
      view.num_leaves, num_threads, kPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        check_items(view, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end));
      },
      part(0.2, view.num_leaves));
  if (tick) tick(1.0);
}

}  // namespace gentrie
