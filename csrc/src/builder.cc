#include "gentrie/builder.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <thread>

#include "array_buffer.h"
#include "parallel.h"
#include "sorted_sequences.h"

namespace gentrie {

namespace {

/// A branching node (or the root) while the trie is laid out.
struct Node {
  std::uint32_t begin;  ///< leaves below: [begin, end)
  std::uint32_t end;
  std::uint32_t run_start;  ///< position of the first token of the run that leads here
  std::uint32_t depth;      ///< position of the token that is chosen here
};

/// Appends packed values at consecutive indices from `first` on. Words at either end may be shared with another
/// writer, so those are merged atomically; the words must be zero before.
class PackedWriter {
 public:
  PackedWriter(std::uint32_t* words, std::uint32_t bits, std::uint64_t first)
      : word_(words + first * bits / 32), bits_(bits), filled_(static_cast<std::uint32_t>(first * bits % 32)) {}
  ~PackedWriter() {
    if (filled_ > 0) merge(static_cast<std::uint32_t>(window_));
  }
  PackedWriter(const PackedWriter&) = delete;
  PackedWriter& operator=(const PackedWriter&) = delete;

  void push(std::uint32_t value) {
    window_ |= std::uint64_t{value} << filled_;
    filled_ += bits_;
    if (filled_ < 32) return;
    if (is_first_) {
      merge(static_cast<std::uint32_t>(window_));
      is_first_ = false;
    } else {
      *word_ = static_cast<std::uint32_t>(window_);
    }
    ++word_;
    window_ >>= 32;
    filled_ -= 32;
  }

 private:
  void merge(std::uint32_t bits) { __atomic_fetch_or(word_, bits, __ATOMIC_RELAXED); }

  std::uint32_t* word_;
  std::uint32_t bits_;
  std::uint32_t filled_;
  std::uint64_t window_ = 0;
  bool is_first_ = true;
};

/// Lays sorted sequences out as the arrays that view.h describes.
class Layout {
 public:
  Layout(const SortedSequences& sequences, std::int64_t vocab_size, std::int64_t end_token_id, int num_threads)
      : sequences_(sequences), num_threads_(num_threads) {
    header_.vocab_size = vocab_size;
    header_.end_token_id = end_token_id;
    header_.num_leaves = sequences.num_leaves();
    header_.num_items = sequences.item_ids().size();
  }

  std::shared_ptr<const Trie> run(const SortedSequences::Tick& tick) {
    store_vocabulary();
    place_nodes(tick);
    store_edges();
    tick(0.6);
    store_runs();
    tick(0.9);
    store_items();
    const ArrayTable arrays = storage_->arrays();
    return std::make_shared<const Trie>(header_, arrays, storage_);
  }

 private:
  void store_vocabulary() {
    const std::vector<Token>& vocabulary = sequences_.vocabulary();
    Token* stored = storage_->allocate<Token>(ArrayId::kVocabulary, vocabulary.size(), true);
    std::copy(vocabulary.begin(), vocabulary.end(), stored);
    edge_token_bytes_ = vocabulary.size() <= 1 << 8 ? 1 : vocabulary.size() <= 1 << 16 ? 2 : 4;
  }

  /// Calls emit(begin, end, depth) for the leaves of each child; `depth` is where the child branches (unused for one
  /// leaf). Children begin where a leaf shares no more with the one before it than the node's own prefix.
  template <typename Emit>
  void for_each_child(const Node& node, const Emit& emit) const {
    const std::uint32_t* lcp = sequences_.lcp().data();
    std::uint32_t begin = node.begin, depth = std::numeric_limits<std::uint32_t>::max();
    for (std::uint32_t leaf = node.begin + 1; leaf < node.end; ++leaf) {
      if (lcp[leaf] == node.depth) {
        emit(begin, leaf, depth);
        begin = leaf;
        depth = std::numeric_limits<std::uint32_t>::max();
      } else {
        depth = std::min(depth, lcp[leaf]);
      }
    }
    emit(begin, node.end, depth);
  }

  /// Finds the nodes level by level: one pass counts each node's edges, one writes them where the counts say.
  void place_nodes(const SortedSequences::Tick& tick) {
    constexpr std::uint64_t kNodesPerChunk = 1 << 12;
    leaf_run_start_.resize(header_.num_leaves);
    nodes_.push_back({0, sequences_.num_leaves(), 0, 0});
    edge_indptr_.push_back(0);
    for (std::uint64_t level_begin = 0; level_begin < nodes_.size();) {
      const std::uint64_t level_end = nodes_.size(), level_size = level_end - level_begin;
      const std::uint64_t num_chunks = (level_size + kNodesPerChunk - 1) / kNodesPerChunk;
      std::vector<std::uint64_t> first_node(num_chunks + 1, 0), first_edge(num_chunks + 1, 0);
      edge_indptr_.resize(level_end + 1);
      parallel_for(level_size, num_threads_, kNodesPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
        std::uint64_t num_nodes = 0, num_edges = 0;
        for (std::uint64_t n = level_begin + begin; n < level_begin + end; ++n) {
          for_each_child(nodes_[n], [&](std::uint32_t from, std::uint32_t to, std::uint32_t) {
            num_nodes += to - from > 1 ? 1 : 0;
            ++num_edges;
          });
        }
        first_node[begin / kNodesPerChunk + 1] = num_nodes;
        first_edge[begin / kNodesPerChunk + 1] = num_edges;
      });
      first_node[0] = level_end;
      first_edge[0] = edges_.size();
      for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) {
        first_node[chunk + 1] += first_node[chunk];
        first_edge[chunk + 1] += first_edge[chunk];
      }
      if (first_edge[num_chunks] > std::numeric_limits<std::uint32_t>::max() - 1) {
        throw std::invalid_argument("sequences need more than 4294967294 edges; build several tries by first tokens");
      }
      nodes_.resize(first_node[num_chunks]);
      edges_.resize(first_edge[num_chunks]);
      parallel_for(level_size, num_threads_, kNodesPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
        std::uint64_t next_node = first_node[begin / kNodesPerChunk];
        std::uint64_t next_edge = first_edge[begin / kNodesPerChunk];
        for (std::uint64_t n = level_begin + begin; n < level_begin + end; ++n) {
          const Node node = nodes_[n];
          for_each_child(node, [&](std::uint32_t from, std::uint32_t to, std::uint32_t depth) {
            const bool is_node = to - from > 1;
            edges_[next_edge++] = {sequences_.index_at(from, node.depth), is_node};
            if (is_node) {
              nodes_[next_node++] = {from, to, node.depth + 1, depth};
            } else {
              leaf_run_start_[from] = node.depth + 1;
            }
          });
          edge_indptr_[n + 1] = static_cast<std::uint32_t>(next_edge);
        }
      });
      level_begin = level_end;
      tick(0.5 * static_cast<double>(edges_.size()) /
           static_cast<double>(edges_.size() + nodes_.size() - level_begin + header_.num_leaves));
    }
    header_.num_nodes = nodes_.size();
  }

  void store_edges() {
    const std::uint64_t num_nodes = nodes_.size(), num_edges = edges_.size();
    auto* indptr = storage_->allocate<std::uint32_t>(ArrayId::kEdgeIndptr, num_nodes + 1);
    std::copy(edge_indptr_.begin(), edge_indptr_.end(), indptr);

    void* tokens = storage_->allocate_bytes(ArrayId::kEdgeTokens, num_edges, edge_token_bytes_, false);
    auto* to_node = storage_->allocate<std::uint64_t>(ArrayId::kEdgeToNode, RankedBitmap::num_words(num_edges));
    for (std::uint64_t e = 0; e < num_edges; ++e) {
      switch (edge_token_bytes_) {
        case 1:
          static_cast<std::uint8_t*>(tokens)[e] = static_cast<std::uint8_t>(edges_[e].token_index);
          break;
        case 2:
          static_cast<std::uint16_t*>(tokens)[e] = static_cast<std::uint16_t>(edges_[e].token_index);
          break;
        default:
          static_cast<std::uint32_t*>(tokens)[e] = edges_[e].token_index;
      }
      to_node[e >> 5] |= std::uint64_t{edges_[e].is_node} << (e & 31);
    }
    edges_ = {};
    RankedBitmap::index(to_node, RankedBitmap::num_words(num_edges));

    auto* base = storage_->allocate<std::uint32_t>(ArrayId::kLeafBase, num_nodes);
    auto* prefix = storage_->allocate<std::uint32_t>(ArrayId::kLeafPrefix, num_nodes + 1);
    for (std::uint64_t n = 0; n < num_nodes; ++n) prefix[n + 1] = prefix[n] + (nodes_[n].end - nodes_[n].begin - 1);
    const RankedBitmap ranked{to_node};
    for (std::uint64_t n = 0; n < num_nodes; ++n) {
      const std::uint32_t first_edge = edge_indptr_[n], first_child = 1 + ranked.rank(first_edge);
      base[n] = nodes_[n].begin - first_edge - prefix[first_child];
      header_.max_branching = std::max<std::uint64_t>(header_.max_branching, edge_indptr_[n + 1] - first_edge);
    }
    edge_indptr_ = {};
  }

  /// The sequence and positions that hold a target's run.
  struct Run {
    std::uint32_t leaf;
    std::uint64_t begin;
    std::uint64_t end;
  };
  Run run_of(std::uint64_t target) const {
    if (target < nodes_.size()) {
      const Node& node = nodes_[target];
      return {node.begin, node.run_start, node.depth};
    }
    const auto leaf = static_cast<std::uint32_t>(target - nodes_.size());
    return {leaf, leaf_run_start_[leaf], sequences_.length(leaf)};
  }

  void store_runs() {
    const std::uint64_t num_targets = nodes_.size() + header_.num_leaves;
    auto* blocks = storage_->allocate<std::uint64_t>(ArrayId::kRunBlocks, num_targets / TrieView::kRunBlock + 1);
    std::uint64_t total = 0, max_offset = 0;
    for (std::uint64_t target = 0; target <= num_targets; ++target) {
      if (target % TrieView::kRunBlock == 0) blocks[target / TrieView::kRunBlock] = total;
      max_offset = std::max(max_offset, total - blocks[target / TrieView::kRunBlock]);
      if (target == num_targets) break;
      const Run run = run_of(target);
      total += run.end - run.begin;
      if (target >= nodes_.size()) header_.max_depth = std::max(header_.max_depth, run.end);
    }
    header_.num_run_tokens = total;
    header_.run_offset_bits = bit_width(max_offset);
    header_.run_token_bits = bit_width(sequences_.vocabulary().size() - 1);
    const auto offset_bits = static_cast<std::uint32_t>(header_.run_offset_bits);
    const auto token_bits = static_cast<std::uint32_t>(header_.run_token_bits);
    auto* offsets =
        storage_->allocate<std::uint32_t>(ArrayId::kRunOffsets, PackedView::num_words(num_targets + 1, offset_bits));
    auto* tokens = storage_->allocate<std::uint32_t>(ArrayId::kRunTokens, PackedView::num_words(total, token_bits));

    constexpr std::uint64_t kTargetsPerChunk = TrieView::kRunBlock << 8;
    parallel_for(num_targets, num_threads_, kTargetsPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
      std::uint64_t at = blocks[begin / TrieView::kRunBlock];
      PackedWriter write_offset(offsets, offset_bits, begin), write_token(tokens, token_bits, at);
      for (std::uint64_t target = begin; target < end; ++target) {
        write_offset.push(static_cast<std::uint32_t>(at - blocks[target / TrieView::kRunBlock]));
        const Run run = run_of(target);
        for (std::uint64_t i = run.begin; i < run.end; ++i) write_token.push(sequences_.index_at(run.leaf, i));
        at += run.end - run.begin;
      }
      if (end == num_targets) write_offset.push(static_cast<std::uint32_t>(at - blocks[end / TrieView::kRunBlock]));
    });
  }

  void store_items() {
    const std::vector<std::int64_t>& ids = sequences_.item_ids();
    const auto [least, greatest] = std::minmax_element(ids.begin(), ids.end());
    if (*least >= std::numeric_limits<std::int32_t>::min() && *greatest <= std::numeric_limits<std::int32_t>::max()) {
      auto* stored = storage_->allocate<std::int32_t>(ArrayId::kItemIds, ids.size(), true);
      std::transform(ids.begin(), ids.end(), stored, [](std::int64_t id) { return static_cast<std::int32_t>(id); });
    } else {
      auto* stored = storage_->allocate<std::int64_t>(ArrayId::kItemIds, ids.size(), true);
      std::copy(ids.begin(), ids.end(), stored);
    }
    const bool one_each = ids.size() == header_.num_leaves;
    auto* indptr = storage_->allocate<std::uint32_t>(ArrayId::kItemIndptr, one_each ? 0 : header_.num_leaves + 1);
    if (!one_each) std::copy(sequences_.item_indptr().begin(), sequences_.item_indptr().end(), indptr);
  }

  struct Edge {
    std::uint32_t token_index : 31;
    std::uint32_t is_node : 1;
  };

  const SortedSequences& sequences_;
  int num_threads_;
  TrieHeader header_;
  std::shared_ptr<ArrayStorage> storage_ = std::make_shared<ArrayStorage>();
  std::uint32_t edge_token_bytes_ = 4;
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::vector<std::uint32_t> edge_indptr_;
  std::vector<std::uint32_t> leaf_run_start_;
};

/// Processors that a cgroup v2 quota allows, or 0 where there is none.
int cgroup_quota() {
  std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file == nullptr) return 0;
  long long quota = 0, period = 0;
  const int fields = std::fscanf(file, "%lld %lld", &quota, &period);
  std::fclose(file);
  return fields == 2 && quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

}  // namespace

int default_num_threads() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
#endif
  const int quota = cgroup_quota();
  if (quota > 0) count = std::min(count, quota);
  return std::max(count, 1);
}

std::shared_ptr<const Trie> build_trie(const SequenceSource& source, const BuildOptions& options) {
  const int num_threads = options.num_threads > 0 ? options.num_threads : default_num_threads();
  const auto report = [&](double from, double to) {
    return [&options, &source, from, to](double share) {
      if (!options.progress) return;
      const double done = (from + share * (to - from)) * static_cast<double>(source.num_rows);
      options.progress(static_cast<std::uint64_t>(done), source.num_rows);
    };
  };
  const SortedSequences sequences(source, options, num_threads, report(0.0, 0.6));
  auto trie = Layout(sequences, options.vocab_size, options.end_token_id, num_threads).run(report(0.6, 1.0));
  if (options.progress) options.progress(source.num_rows, source.num_rows);
  return trie;
}

}  // namespace gentrie
