#ifndef GENTRIE_LEAF_ORDER_H_
#define GENTRIE_LEAF_ORDER_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "levels.h"

namespace gentrie {

/// The order in which a trie numbers its leaves: below each node first its own, then those below its child nodes, one
/// after the other. Found from the nodes as it is asked for; kept, it would take as much memory as the items.
class LeafOrder {
 public:
  /// Numbers the leaves below `levels`, which it refers to: `leaf_begin` gets the first one of each node.
  LeafOrder(const std::vector<Level>& levels, std::uint32_t* leaf_begin,
            const std::function<void(std::uint64_t)>& poll);

  /// Calls visit(sorted) for the leaves [first, last): `sorted` is the leaf's number in the catalog's order.
  template <typename Visit>
  void for_each(std::uint32_t first, std::uint32_t last, const Visit& visit) const {
    if (first >= last) return;
    Path path = path_to(first);
    for (std::uint32_t leaf = path.leaf; leaf < last; next(&path)) {
      // The node's own leaves lie before, between and behind its child nodes.
      const Node& node = path.node(levels_);
      const std::vector<Node>& children = nodes_at(path.depth + 1);
      std::uint32_t sorted = node.begin;
      const auto visit_until = [&](std::uint32_t end) {
        if (leaf < first) {
          const std::uint32_t before = std::min(first - leaf, end - sorted);
          sorted += before;
          leaf += before;
        }
        for (; sorted < end && leaf < last; ++sorted, ++leaf) visit(sorted);
      };
      for (std::uint64_t c = path.at[path.depth + 1]; c < children.size() && children[c].begin < node.end; ++c) {
        visit_until(children[c].begin);
        sorted = children[c].end;
      }
      visit_until(node.end);
    }
  }

 private:
  /// A node of a depth-first walk, and of each level below the first node that was not visited yet.
  struct Path {
    std::size_t depth;
    std::vector<std::uint64_t> at;  ///< node of each level up to `depth`, and beyond the next to visit
    std::uint32_t leaf;             ///< the node's first

    const Node& node(const std::vector<Level>& levels) const { return levels[depth].nodes[at[depth]]; }
  };

  const std::vector<Node>& nodes_at(std::size_t depth) const {
    return depth < levels_.size() ? levels_[depth].nodes : none_;
  }
  /// The node that `leaf` is an own leaf of.
  Path path_to(std::uint32_t leaf) const;
  /// To the node behind this one.
  void next(Path* path) const;

  const std::vector<Level>& levels_;
  const std::vector<Node> none_;
  std::vector<const std::uint32_t*> leaf_begin_;  ///< of each level's nodes
};

}  // namespace gentrie

#endif  // GENTRIE_LEAF_ORDER_H_
