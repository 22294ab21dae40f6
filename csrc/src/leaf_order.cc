#include "leaf_order.h"

namespace gentrie {

LeafOrder::LeafOrder(const std::vector<Level>& levels, std::uint32_t* leaf_begin,
                     const std::function<void(std::uint64_t)>& poll)
    : levels_(levels) {
  constexpr std::uint64_t kPerPoll = 1 << 18;
  leaf_begin[0] = 0;
  for (std::size_t depth = 0; depth < levels.size(); ++depth) {
    leaf_begin_.push_back(leaf_begin);
    const std::vector<Node>& nodes = levels[depth].nodes;
    const std::vector<Node>& children = nodes_at(depth + 1);
    std::uint32_t* const child_begin = leaf_begin + nodes.size();
    std::uint64_t child = 0;
    for (std::uint64_t n = 0; n < nodes.size(); ++n) {
      if (n % kPerPoll == 0) poll(0);
      std::uint32_t next = leaf_begin[n] + (nodes[n].end - nodes[n].begin);
      std::uint64_t stop = child;
      for (; stop < children.size() && children[stop].begin < nodes[n].end; ++stop) {
        next -= children[stop].end - children[stop].begin;
      }
      for (; child < stop; ++child) {
        child_begin[child] = next;
        next += children[child].end - children[child].begin;
      }
    }
    leaf_begin = child_begin;
  }
}

LeafOrder::Path LeafOrder::path_to(std::uint32_t leaf) const {
  const auto first_from = [](const std::vector<Node>& nodes, std::uint32_t sorted) {
    const auto found =
        std::partition_point(nodes.begin(), nodes.end(), [sorted](const Node& node) { return node.begin < sorted; });
    return static_cast<std::uint64_t>(found - nodes.begin());
  };
  Path path{0, std::vector<std::uint64_t>(levels_.size() + 1), 0};
  while (true) {
    const Node& node = path.node(levels_);
    const std::vector<Node>& children = nodes_at(path.depth + 1);
    const std::uint64_t begin = first_from(children, node.begin), end = first_from(children, node.end);
    path.at[path.depth + 1] = begin;
    if (begin == end || leaf < leaf_begin_[path.depth + 1][begin]) break;
    const std::uint32_t* const of_child = leaf_begin_[path.depth + 1];
    path.at[path.depth + 1] =
        static_cast<std::uint64_t>(std::upper_bound(of_child + begin, of_child + end, leaf) - of_child) - 1;
    ++path.depth;
  }
  path.leaf = leaf_begin_[path.depth][path.at[path.depth]];
  for (std::size_t depth = path.depth + 1; depth < levels_.size(); ++depth) {
    path.at[depth] = first_from(levels_[depth].nodes, path.node(levels_).begin);
  }
  return path;
}

void LeafOrder::next(Path* path) const {
  const auto has_child = [&] {
    const std::vector<Node>& children = nodes_at(path->depth + 1);
    const std::uint64_t child = path->at[path->depth + 1];
    return child < children.size() && children[child].begin < path->node(levels_).end;
  };
  while (!has_child() && path->depth > 0) {
    ++path->at[path->depth];
    --path->depth;
  }
  if (has_child()) ++path->depth;
}

}  // namespace gentrie
