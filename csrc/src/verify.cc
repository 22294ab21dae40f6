#include <algorithm>
#include <string>

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

/// Checks nodes [begin, end): tokens ascend, targets are counted right, leaves leave no gap. Each edge's rank is held
/// against a count that begins with the first edge's, so that parts checked one by one fit together.
void check_nodes(const TrieView& view, std::uint32_t begin, std::uint32_t end) {
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
    }
    require(view.edge_to_node.rank(last) + 1 == child, "edge_to_node has a wrong rank");
    require(own == own_end && below == view.leaves_below(node).end, "leaf_prefix does not fit the edges");
  }
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
  if (fingerprint_of(trie.header(), trie.arrays(), checksums_of(trie.arrays(), num_threads)) != trie.fingerprint()) {
    throw FormatError("an array was altered: the checksums differ");
  }
  part(0.2, 1)(1);
  const TrieView& view = trie.view();
  check_vocabulary(view);
  require(view.edge_indptr[0] == 0 && view.edge_indptr[view.num_nodes] == view.num_edges,
          "edge_indptr does not span the edges");
  require(view.edge_to_node.rank(0) == 0 && view.edge_to_node.rank(view.num_edges) + 1 == view.num_nodes,
          "edge_to_node does not lead to every node");
  require(view.leaves_below(kRoot).begin == 0 && view.leaves_below(kRoot).end == view.num_leaves,
          "leaf_prefix does not fit the edges");
  parallel_for(
      view.num_nodes, num_threads, kPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        check_nodes(view, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end));
      },
      part(0.3, view.num_nodes));
  require(view.run_begin(0) == 0 && view.run_begin(view.num_targets()) == view.num_run_tokens,
          "run_offsets do not span the run tokens");
  parallel_for(
      view.num_targets(), num_threads, kPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t target = begin; target < end; ++target) {
          require(view.run_end(target) >= view.run_begin(target), "run_offsets are not ascending");
        }
      },
      part(0.2, view.num_targets()));
  parallel_for(
      view.num_run_tokens, num_threads, kPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t at = begin; at < end; ++at) {
          require(view.run_tokens[at] < view.num_tokens, "run_tokens holds an index beyond the vocabulary");
        }
      },
      part(0.1, view.num_run_tokens));
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
