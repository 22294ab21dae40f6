#include "layout.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "array_buffer.h"
#include "gentrie/packed.h"
#include "gentrie/view.h"
#include "packed_writer.h"
#include "parallel.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kLeavesPerChunk = 1 << 15;

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

/// The segment that a leaf lies in.
std::uint64_t segment_of(const std::vector<std::uint32_t>& first_leaf, std::uint32_t leaf) {
  const auto after = std::upper_bound(first_leaf.begin(), first_leaf.end(), leaf);
  return static_cast<std::uint64_t>(after - first_leaf.begin()) - 1;
}

/// Reads tokens of front-coded sequences; fast where the leaves asked for ascend.
class LeafReader {
 public:
  LeafReader(const FrontCoded& catalog, const std::vector<std::uint32_t>& first_leaf)
      : catalog_(catalog), first_leaf_(first_leaf), tokens_{nullptr, catalog.token_bits()} {}

  void seek(std::uint32_t leaf) {
    if (segment_ != nullptr && leaf == leaf_) return;
    if (segment_ == nullptr || leaf < begin_ || leaf >= end_) {
      const std::uint64_t s = segment_of(first_leaf_, leaf);
      segment_ = &catalog_.segments[s];
      tokens_.words = segment_->tokens.data();
      begin_ = first_leaf_[s];
      end_ = first_leaf_[s + 1];
      offset_ = segment_->offset(leaf - begin_);
    } else if (leaf == leaf_ + 1) {
      offset_ += segment_->stored[leaf_ - begin_];
    } else {
      offset_ = segment_->offset(leaf - begin_);
    }
    leaf_ = leaf;
    shared_ = segment_->shared[leaf - begin_];
  }
  /// Vocabulary index at `position` of the leaf sought, which must be one that it does not share with the leaf before.
  std::uint32_t token(std::uint32_t position) const { return tokens_[offset_ + position - shared_]; }

 private:
  const FrontCoded& catalog_;
  const std::vector<std::uint32_t>& first_leaf_;
  PackedView tokens_;
  const Segment* segment_ = nullptr;
  std::uint32_t begin_ = 0, end_ = 0;  ///< leaves of the segment
  std::uint32_t leaf_ = 0, shared_ = 0;
  std::uint64_t offset_ = 0;
};

class Layout {
 public:
  Layout(const FrontCoded& catalog, std::int64_t vocab_size, std::int64_t end_token_id, int num_threads)
      : catalog_(catalog), num_threads_(num_threads) {
    header_.vocab_size = vocab_size;
    header_.end_token_id = end_token_id;
    header_.num_leaves = catalog.num_sequences;
    header_.num_items = catalog.num_items;
    header_.max_depth = catalog.max_length;
    header_.run_token_bits = catalog.token_bits();
  }

  std::shared_ptr<const Trie> run(const Tick& tick) {
    Token* vocabulary = storage_->allocate<Token>(ArrayId::kVocabulary, catalog_.vocabulary.size(), true);
    std::copy(catalog_.vocabulary.begin(), catalog_.vocabulary.end(), vocabulary);
    collect_shared();
    tick(0.05);
    shared_.visit([&](const auto* shared) { place_nodes(shared, tick); });
    store_edges();
    tick(0.7);
    store_nodes();
    tick(0.75);
    store_runs();
    tick(0.9);
    store_items();
    const ArrayTable arrays = storage_->arrays();
    return std::make_shared<const Trie>(header_, arrays, storage_);
  }

 private:
  /// Tokens that each leaf shares with the one before it, in one piece; entries 0 and num_leaves are 0.
  void collect_shared() {
    first_leaf_.push_back(0);
    for (const Segment& segment : catalog_.segments)
      first_leaf_.push_back(first_leaf_.back() + segment.num_sequences());
    shared_ = Lengths(catalog_.max_length);
    shared_.resize(header_.num_leaves + 1);
    parallel_for(catalog_.segments.size(), num_threads_, 16, [&](std::uint64_t begin, std::uint64_t end) {
      for (std::uint64_t s = begin; s < end; ++s) {
        const Segment& segment = catalog_.segments[s];
        shared_.set(first_leaf_[s], segment.first_shared);
        for (std::uint32_t i = 1; i < segment.num_sequences(); ++i) shared_.set(first_leaf_[s] + i, segment.shared[i]);
      }
    });
  }

  /// Calls emit(begin, end, depth) for every child that begins at a leaf in [from, to) of a node; `depth` is where the
  /// child branches (unused for one leaf). A child begins at the node's first leaf, and wherever a leaf shares no more
  /// with the one before it than the node's own prefix.
  template <typename Length, typename Emit>
  static void for_each_child(const Length* shared, const Node& node, std::uint32_t from, std::uint32_t to,
                             const Emit& emit) {
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

  /// Finds the nodes level by level. A level is cut by leaves, not by nodes, so that a node with many is shared among
  /// threads; one pass counts what begins in each part, one writes it where the counts say.
  template <typename Length>
  void place_nodes(const Length* shared, const Tick& tick) {
    std::vector<Node> nodes{{0, static_cast<std::uint32_t>(header_.num_leaves), 0, 0}};
    std::uint64_t num_edges = 0;
    while (!nodes.empty()) {
      Level& level = levels_.emplace_back();
      level.nodes.swap(nodes);
      const std::uint64_t origin = level.nodes.front().begin, span = level.nodes.back().end - origin;
      std::uint64_t leaves = 0;
      for (const Node& node : level.nodes) leaves += node.end - node.begin;
      const std::uint64_t grain = leaves <= kLeavesPerChunk ? span : kLeavesPerChunk;
      const std::uint64_t num_chunks = (span + grain - 1) / grain;
      const auto in_chunk = [&](std::uint64_t begin, std::uint64_t end, const auto& visit) {
        const auto from = static_cast<std::uint32_t>(origin + begin), to = static_cast<std::uint32_t>(origin + end);
        auto node = std::partition_point(level.nodes.begin(), level.nodes.end(),
                                         [from](const Node& other) { return other.end <= from; });
        for (; node != level.nodes.end() && node->begin < to; ++node) visit(*node, from, to);
      };

      std::vector<std::uint64_t> first_child(num_chunks + 1, 0), first_edge(num_chunks + 1, 0);
      parallel_for(span, num_threads_, grain, [&](std::uint64_t begin, std::uint64_t end) {
        std::uint64_t children = 0, edges = 0;
        in_chunk(begin, end, [&](const Node& node, std::uint32_t from, std::uint32_t to) {
          for_each_child(shared, node, from, to, [&](std::uint32_t leaf, std::uint32_t leaf_end, std::uint32_t) {
            children += leaf_end - leaf > 1 ? 1 : 0;
            ++edges;
          });
        });
        first_child[begin / grain + 1] = children;
        first_edge[begin / grain + 1] = edges;
      });
      for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) {
        first_child[chunk + 1] += first_child[chunk];
        first_edge[chunk + 1] += first_edge[chunk];
      }
      if (num_edges + first_edge[num_chunks] > std::numeric_limits<std::uint32_t>::max() - 1) {
        throw std::invalid_argument("sequences need more than 4294967294 edges; build several tries by first tokens");
      }

      nodes.resize(first_child[num_chunks]);
      level.first_edge.resize(level.nodes.size());
      level.edge_tokens.resize(first_edge[num_chunks]);
      parallel_for(span, num_threads_, grain, [&](std::uint64_t begin, std::uint64_t end) {
        LeafReader reader(catalog_, first_leaf_);
        std::uint64_t child = first_child[begin / grain], edge = first_edge[begin / grain];
        in_chunk(begin, end, [&](const Node& node, std::uint32_t from, std::uint32_t to) {
          if (node.begin >= from) {
            level.first_edge[static_cast<std::uint64_t>(&node - level.nodes.data())] =
                static_cast<std::uint32_t>(num_edges + edge);
          }
          for_each_child(shared, node, from, to, [&](std::uint32_t leaf, std::uint32_t leaf_end, std::uint32_t depth) {
            if (leaf_end - leaf > 1) {
              nodes[child++] = {leaf, leaf_end, depth, static_cast<std::uint32_t>(num_edges + edge)};
            }
            reader.seek(leaf);
            level.edge_tokens[edge++] = reader.token(node.depth);
          });
        });
      });
      num_edges += level.edge_tokens.size();
      header_.num_nodes += level.nodes.size();
      tick(0.05 + 0.6 * static_cast<double>(num_edges) /
                      static_cast<double>(num_edges + 2 * nodes.size() + header_.num_leaves));
    }
  }

  /// Calls visit(first, level, begin, end) for parts of levels, in parallel; `first` is the number of the level's
  /// first node (or edge, as sizes say).
  template <typename Size, typename Visit>
  void for_each_part(const Size& size_of, const Visit& visit) const {
    std::uint64_t first = 0;
    for (const Level& level : levels_) {
      const std::uint64_t size = size_of(level);
      parallel_for(size, num_threads_, kLeavesPerChunk,
                   [&](std::uint64_t begin, std::uint64_t end) { visit(first, level, begin, end); });
      first += size;
    }
  }

  void store_edges() {
    std::uint64_t num_edges = 0;
    for (const Level& level : levels_) num_edges += level.edge_tokens.size();
    const std::uint64_t vocabulary = catalog_.vocabulary.size();
    const std::uint32_t bytes = vocabulary <= 1 << 8 ? 1 : vocabulary <= 1 << 16 ? 2 : 4;
    void* tokens = storage_->allocate_bytes(ArrayId::kEdgeTokens, num_edges, bytes, false);
    for_each_part([](const Level& level) { return level.edge_tokens.size(); },
                  [&](std::uint64_t first, const Level& level, std::uint64_t begin, std::uint64_t end) {
                    const auto copy = [&](auto* to) {
                      using Stored = std::remove_pointer_t<decltype(to)>;
                      for (std::uint64_t e = begin; e < end; ++e) {
                        to[first + e] = static_cast<Stored>(level.edge_tokens[e]);
                      }
                    };
                    if (bytes == 1) return copy(static_cast<std::uint8_t*>(tokens));
                    if (bytes == 2) return copy(static_cast<std::uint16_t*>(tokens));
                    copy(static_cast<std::uint32_t*>(tokens));
                  });
    for (Level& level : levels_) level.edge_tokens = {};
    num_edges_ = num_edges;
  }

  void store_nodes() {
    const std::uint64_t num_nodes = header_.num_nodes, num_words = RankedBitmap::num_words(num_edges_);
    auto* indptr = storage_->allocate<std::uint32_t>(ArrayId::kEdgeIndptr, num_nodes + 1);
    auto* to_node = storage_->allocate<std::uint64_t>(ArrayId::kEdgeToNode, num_words);
    auto* base = storage_->allocate<std::uint32_t>(ArrayId::kLeafBase, num_nodes);
    auto* prefix = storage_->allocate<std::uint32_t>(ArrayId::kLeafPrefix, num_nodes + 1);
    std::uint64_t n = 0;
    for (const Level& level : levels_) {
      for (std::uint64_t i = 0; i < level.nodes.size(); ++i, ++n) {
        const Node& node = level.nodes[i];
        indptr[n] = level.first_edge[i];
        prefix[n + 1] = prefix[n] + (node.end - node.begin - 1);
        if (n > 0) to_node[node.edge >> 5] |= std::uint64_t{1} << (node.edge & 31);
      }
    }
    indptr[num_nodes] = static_cast<std::uint32_t>(num_edges_);
    RankedBitmap::index(to_node, num_words);

    const RankedBitmap ranked{to_node};
    std::atomic<std::uint64_t> widest{0};
    for_each_part([](const Level& level) { return level.nodes.size(); },
                  [&](std::uint64_t first, const Level& level, std::uint64_t begin, std::uint64_t end) {
                    std::uint64_t most = 0;
                    for (std::uint64_t i = begin; i < end; ++i) {
                      const std::uint64_t node = first + i;
                      const std::uint32_t edge = indptr[node], child = 1 + ranked.rank(edge);
                      base[node] = level.nodes[i].begin - edge - prefix[child];
                      most = std::max<std::uint64_t>(most, indptr[node + 1] - edge);
                    }
                    raise_to(&widest, most);
                  });
    header_.max_branching = widest;
    for (Level& level : levels_) level.first_edge = {};
  }

  static void raise_to(std::atomic<std::uint64_t>* greatest, std::uint64_t value) {
    std::uint64_t current = greatest->load(std::memory_order_relaxed);
    while (value > current && !greatest->compare_exchange_weak(current, value)) {
    }
  }

  /// Position of the first token that is forced on the way to the leaves [begin, end): right behind the token chosen
  /// at the node above, which is where they part from their neighbours.
  std::uint32_t run_begin(std::uint32_t begin, std::uint32_t end) const {
    return std::max(shared_[begin], shared_[end]) + 1;
  }

  /// Calls visit(leaf, begin, end) for the targets [first, last): the tokens [begin, end) of the leaf are the run.
  template <typename Visit>
  void for_each_run(std::uint64_t first, std::uint64_t last, const Visit& visit) const {
    std::uint64_t passed = 0;
    for (const Level& level : levels_) {
      for (std::uint64_t n = std::max(first, passed) - passed; n < level.nodes.size() && passed + n < last; ++n) {
        const Node& node = level.nodes[n];
        visit(node.begin, passed + n == 0 ? 0 : run_begin(node.begin, node.end), node.depth);
      }
      passed += level.nodes.size();
    }
    if (last <= passed) return;
    const auto stop = static_cast<std::uint32_t>(last - passed);
    auto leaf = static_cast<std::uint32_t>(std::max(first, passed) - passed);
    for (std::uint64_t s = segment_of(first_leaf_, leaf); leaf < stop; ++s) {
      const Segment& segment = catalog_.segments[s];
      for (; leaf < std::min(stop, first_leaf_[s + 1]); ++leaf) {
        visit(leaf, run_begin(leaf, leaf + 1), segment.length(leaf - first_leaf_[s]));
      }
    }
  }

  void store_runs() {
    constexpr std::uint64_t kBlock = TrieView::kRunBlock, kTargetsPerChunk = kBlock << 8;
    const std::uint64_t num_targets = header_.num_nodes + header_.num_leaves;
    const std::uint64_t num_chunks = num_targets / kTargetsPerChunk + 1;
    auto* blocks = storage_->allocate<std::uint64_t>(ArrayId::kRunBlocks, num_targets / kBlock + 1);
    std::vector<std::uint64_t> chunk_begin(num_chunks + 1, 0);
    std::atomic<std::uint64_t> max_offset{0};
    // The run after the last one is empty: it stands for where the last one ends.
    parallel_for(num_targets + 1, num_threads_, kTargetsPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
      std::uint64_t target = begin, total = 0, greatest = 0;
      const auto count = [&](std::uint64_t length) {
        if (target % kBlock == 0) blocks[target / kBlock] = total;  // within the chunk, so far
        greatest = std::max(greatest, total - blocks[target / kBlock]);
        total += length;
        ++target;
      };
      for_each_run(begin, std::min(end, num_targets),
                   [&](std::uint32_t, std::uint32_t from, std::uint32_t to) { count(to - from); });
      if (end > num_targets) count(0);
      chunk_begin[begin / kTargetsPerChunk + 1] = total;
      raise_to(&max_offset, greatest);
    });
    for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) chunk_begin[chunk + 1] += chunk_begin[chunk];
    header_.num_run_tokens = chunk_begin[num_chunks];
    header_.run_offset_bits = bit_width(max_offset);
    const auto offset_bits = static_cast<std::uint32_t>(header_.run_offset_bits);
    const auto token_bits = static_cast<std::uint32_t>(header_.run_token_bits);
    auto* offsets =
        storage_->allocate<std::uint32_t>(ArrayId::kRunOffsets, PackedView::num_words(num_targets + 1, offset_bits));
    auto* tokens = storage_->allocate<std::uint32_t>(ArrayId::kRunTokens,
                                                     PackedView::num_words(header_.num_run_tokens, token_bits));
    parallel_for(num_targets + 1, num_threads_, kTargetsPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
      const std::uint64_t start = chunk_begin[begin / kTargetsPerChunk];
      std::uint64_t target = begin, at = start;
      PackedWriter write_offset(offsets, offset_bits, begin), write_token(tokens, token_bits, at);
      LeafReader reader(catalog_, first_leaf_);
      const auto place = [&](std::uint64_t length) {
        if (target % kBlock == 0) blocks[target / kBlock] += start;
        write_offset.push(static_cast<std::uint32_t>(at - blocks[target / kBlock]));
        at += length;
        ++target;
      };
      for_each_run(begin, std::min(end, num_targets), [&](std::uint32_t leaf, std::uint32_t from, std::uint32_t to) {
        place(to - from);
        if (from == to) return;
        reader.seek(leaf);
        for (std::uint32_t position = from; position < to; ++position) write_token.push(reader.token(position));
      });
      if (end > num_targets) place(0);
    });
  }

  void store_items() {
    std::vector<std::uint64_t> first_item{0};
    bool is_big = false;
    for (const Segment& segment : catalog_.segments) {
      first_item.push_back(first_item.back() + segment.num_items());
      is_big = is_big || !segment.big_items.empty();
    }
    void* ids = storage_->allocate_bytes(ArrayId::kItemIds, header_.num_items, is_big ? 8 : 4, true);
    const bool one_each = header_.num_items == header_.num_leaves;
    auto* indptr = storage_->allocate<std::uint32_t>(ArrayId::kItemIndptr, one_each ? 0 : header_.num_leaves + 1);
    parallel_for(catalog_.segments.size(), num_threads_, 16, [&](std::uint64_t begin, std::uint64_t end) {
      for (std::uint64_t s = begin; s < end; ++s) {
        const Segment& segment = catalog_.segments[s];
        const auto copy = [&](auto* to) {
          using Stored = std::remove_pointer_t<decltype(to)>;
          for (std::uint64_t i = 0; i < segment.num_items(); ++i) to[i] = static_cast<Stored>(segment.item(i));
        };
        if (is_big) {
          copy(static_cast<std::int64_t*>(ids) + first_item[s]);
        } else {
          copy(static_cast<std::int32_t*>(ids) + first_item[s]);
        }
        if (one_each) continue;
        auto repeat = segment.repeats.begin();
        std::uint64_t entry = first_item[s];
        for (std::uint32_t i = 0; i < segment.num_sequences(); ++i) {
          indptr[first_leaf_[s] + i] = static_cast<std::uint32_t>(entry++);
          for (; repeat != segment.repeats.end() && *repeat == i; ++repeat) ++entry;
        }
      }
    });
    if (!one_each) indptr[header_.num_leaves] = static_cast<std::uint32_t>(header_.num_items);
  }

  const FrontCoded& catalog_;
  int num_threads_;
  TrieHeader header_;
  std::shared_ptr<ArrayStorage> storage_ = std::make_shared<ArrayStorage>();
  std::vector<std::uint32_t> first_leaf_;  ///< of each segment
  Lengths shared_;                         ///< see collect_shared()
  std::vector<Level> levels_;
  std::uint64_t num_edges_ = 0;
};

}  // namespace

std::shared_ptr<const Trie> lay_out(const FrontCoded& catalog, std::int64_t vocab_size, std::int64_t end_token_id,
                                    int num_threads, const Tick& tick) {
  return Layout(catalog, vocab_size, end_token_id, num_threads).run(tick);
}

}  // namespace gentrie
