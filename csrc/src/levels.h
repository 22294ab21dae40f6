#ifndef GENTRIE_LEVELS_H_
#define GENTRIE_LEVELS_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "leaves.h"

namespace gentrie {

/// A branching node (or the root) while the trie is laid out.
struct Node {
  std::uint32_t begin;  ///< leaves below: [begin, end)
  std::uint32_t end;
  std::uint32_t depth;  ///< position of the token that is chosen here
  std::uint32_t edge;   ///< the edge that leads here
};

/// The nodes of one level in the order of their leaves, and their edges.
struct Level {
  std::vector<Node> nodes;
  std::vector<std::uint32_t> first_edge;   ///< of each node
  std::vector<std::uint32_t> edge_tokens;  ///< vocabulary indices
};

/// Finds the nodes level by level; `poll` is called now and then by the calling thread.
/// \throws std::invalid_argument if edges are more than their index can count
std::vector<Level> find_levels(const Leaves& leaves, int num_threads, MemoryShare* memory,
                               const std::function<void(std::uint64_t)>& poll);

}  // namespace gentrie

#endif  // GENTRIE_LEVELS_H_
