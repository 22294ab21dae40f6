#include "levels.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "parallel.h"

namespace gentrie {

namespace {

/// Calls emit(begin, end, depth) for every child that begins at a leaf in [from, to) of a node; `depth` is where the
/// child branches (unused for one leaf). A child begins at the node's first leaf, and wherever a leaf shares no more
/// with the one before it than the node's own prefix.
template <typename Length, typename Emit>
void for_each_child(const Length* shared, const Node& node, std::uint32_t from, std::uint32_t to, const Emit& emit) {
  std::uint32_t begin = std::max(from, node.begin);
  const std::uint32_t stop = std::min(to, node.end);
  if (begin > node.begin) {
    while (begin < stop && shared[begin] != node.depth) ++begin;
  }
  while (begin < stop) {
    std::uint32_t end = begin + 1, depth = std::numeric_limits<std::uint32_t>::max();
    for (; end < node.end && shared[end] != node.depth; ++end) depth = std::min<std::uint32_t>(depth, shared[end]);
    emit(begin, end, depth);
    begin = end;
  }
}

/// One level's nodes to the next one's. The level is cut by leaves, not by nodes, so that a node with many is shared
/// among threads; one pass counts what begins in each part, one writes it where the counts say.
template <typename Length>
class LevelBuilder {
 public:
  LevelBuilder(const Length* shared, const Leaves& leaves, int num_threads, MemoryShare* memory,
               const std::function<void(std::uint64_t)>& poll)
      : shared_(shared), leaves_(leaves), num_threads_(num_threads), memory_(memory), poll_(poll) {}

  /// Fills the level's edges, numbered from `num_edges` on; returns the nodes they lead to.
  std::vector<Node> run(Level* level, std::uint64_t num_edges) const {
    constexpr std::uint64_t kLeavesPerChunk = 1 << 15;
    const std::vector<Node>& nodes = level->nodes;
    const std::uint64_t origin = nodes.front().begin, span = nodes.back().end - origin;
    std::uint64_t num_leaves = 0;
    for (const Node& node : nodes) num_leaves += node.end - node.begin;
    const std::uint64_t grain = num_leaves <= kLeavesPerChunk ? span : kLeavesPerChunk;
    const std::uint64_t num_chunks = (span + grain - 1) / grain;
    const auto for_each_part = [&](const auto& visit) {  // visit(chunk, first node in it, [from, to) of its leaves)
      parallel_for(
          span, num_threads_, grain,
          [&](std::uint64_t begin, std::uint64_t end) {
            const auto from = static_cast<std::uint32_t>(origin + begin), to = static_cast<std::uint32_t>(origin + end);
            const auto first =
                std::partition_point(nodes.begin(), nodes.end(), [from](const Node& node) { return node.end <= from; });
            visit(begin / grain, static_cast<std::uint64_t>(first - nodes.begin()), from, to);
          },
          poll_);
    };

    std::vector<std::uint64_t> first_child(num_chunks + 1, 0), first_edge(num_chunks + 1, 0);
    for_each_part([&](std::uint64_t chunk, std::uint64_t n, std::uint32_t from, std::uint32_t to) {
      std::uint64_t children = 0, edges = 0;
      for (; n < nodes.size() && nodes[n].begin < to; ++n) {
        for_each_child(shared_, nodes[n], from, to, [&](std::uint32_t leaf, std::uint32_t leaf_end, std::uint32_t) {
          children += leaf_end - leaf > 1 ? 1 : 0;
          ++edges;
        });
      }
      first_child[chunk + 1] = children;
      first_edge[chunk + 1] = edges;
    });
    for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) {
      first_child[chunk + 1] += first_child[chunk];
      first_edge[chunk + 1] += first_edge[chunk];
    }
    if (num_edges + first_edge[num_chunks] > std::numeric_limits<std::uint32_t>::max() - 1) {
      throw std::invalid_argument("sequences need more than 4294967294 edges; build several tries by first tokens");
    }

    memory_->grow(first_child[num_chunks] * sizeof(Node) + (nodes.size() + first_edge[num_chunks]) * 4, "nodes");
    std::vector<Node> children(first_child[num_chunks]);
    level->first_edge.resize(nodes.size());
    level->edge_tokens.resize(first_edge[num_chunks]);
    for_each_part([&](std::uint64_t chunk, std::uint64_t n, std::uint32_t from, std::uint32_t to) {
      LeafReader reader(leaves_);
      std::uint64_t child = first_child[chunk], edge = first_edge[chunk];
      for (; n < nodes.size() && nodes[n].begin < to; ++n) {
        const Node& node = nodes[n];
        if (node.begin >= from) level->first_edge[n] = static_cast<std::uint32_t>(num_edges + edge);
        for_each_child(shared_, node, from, to, [&](std::uint32_t leaf, std::uint32_t leaf_end, std::uint32_t depth) {
          if (leaf_end - leaf > 1) {
            children[child++] = {leaf, leaf_end, depth, static_cast<std::uint32_t>(num_edges + edge)};
          }
          reader.seek(leaf);
          level->edge_tokens[edge++] = reader.token(node.depth);
        });
      }
    });
    return children;
  }

 private:
  const Length* shared_;
  const Leaves& leaves_;
  int num_threads_;
  MemoryShare* memory_;
  const std::function<void(std::uint64_t)>& poll_;
};

}  // namespace

std::vector<Level> find_levels(const Leaves& leaves, int num_threads, MemoryShare* memory,
                               const std::function<void(std::uint64_t)>& poll) {
  return leaves.shared().visit([&](const auto* shared) {
    const LevelBuilder builder(shared, leaves, num_threads, memory, poll);
    std::vector<Level> levels;
    std::uint64_t num_edges = 0;
    for (std::vector<Node> nodes{{0, leaves.size(), 0, 0}}; !nodes.empty();) {
      Level& level = levels.emplace_back();
      level.nodes = std::move(nodes);
      nodes = builder.run(&level, num_edges);
      num_edges += level.edge_tokens.size();
    }
    return levels;
  });
}

}  // namespace gentrie
