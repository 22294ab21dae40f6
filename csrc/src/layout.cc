#include "layout.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "array_buffer.h"
#include "gentrie/packed.h"
#include "gentrie/view.h"
#include "leaf_order.h"
#include "leaves.h"
#include "levels.h"
#include "machine.h"
#include "packed_writer.h"
#include "parallel.h"

namespace gentrie {

namespace {

class Layout {
 public:
  Layout(FrontCoded catalog, const BuildOptions& options, int num_threads, MemoryBudget* budget, const Tick& tick)
      : catalog_(std::move(catalog)),
        num_threads_(num_threads),
        tick_(tick),
        memory_(budget),
        leaves_(catalog_, budget, poll_) {
    header_.vocab_size = options.vocab_size;
    header_.end_token_id = options.end_token_id;
    header_.num_leaves = leaves_.size();
    for (const Segment& segment : catalog_.segments) header_.num_items += segment.num_items();
    header_.max_depth = catalog_.max_length;
    header_.run_token_bits = catalog_.token_bits();
  }

  std::shared_ptr<const Trie> run() {
    auto* vocabulary = allocate<Token>(ArrayId::kVocabulary, catalog_.vocabulary.size(), true);
    std::copy(catalog_.vocabulary.begin(), catalog_.vocabulary.end(), vocabulary);
    levels_ = find_levels(leaves_, num_threads_, &memory_, poll_);
    for (const Level& level : levels_) {
      header_.num_nodes += level.nodes.size();
      num_edges_ += level.edge_tokens.size();
    }
    share_ = 0.4;
    store_edges();
    store_nodes();
    share_ = 0.6;
    store_runs();
    share_ = 0.9;
    store_items();
    const ArrayTable arrays = storage_->arrays();
    std::string fingerprint =
        fingerprint_of(header_, arrays, checksums_of(arrays, num_threads_, [this] { tick_(share_); }));
    return std::make_shared<const Trie>(header_, arrays, storage_, std::move(fingerprint));
  }

 private:
  template <typename T>
  T* allocate(ArrayId id, std::uint64_t count, bool is_signed = false) {
    return static_cast<T*>(allocate_bytes(id, count, sizeof(T), is_signed));
  }
  void* allocate_bytes(ArrayId id, std::uint64_t count, std::uint32_t itemsize, bool is_signed) {
    memory_.grow(count * itemsize, array_name(id));
    return storage_->allocate_bytes(id, count, itemsize, is_signed);
  }

  /// Calls visit(first, level, begin, end) for parts of levels, in parallel; `first` is how many nodes (or edges, as
  /// size_of(level) says) earlier levels have.
  template <typename Size, typename Visit>
  void for_each_part(const Size& size_of, const Visit& visit) const {
    std::uint64_t first = 0;
    for (const Level& level : levels_) {
      const std::uint64_t size = size_of(level);
      parallel_for(
          size, num_threads_, std::uint64_t{1} << 16,
          [&](std::uint64_t begin, std::uint64_t end) { visit(first, level, begin, end); }, poll_);
      first += size;
    }
  }

  void store_edges() {
    const std::uint64_t vocabulary = catalog_.vocabulary.size();
    const std::uint32_t bytes = vocabulary <= 1 << 8 ? 1 : vocabulary <= 1 << 16 ? 2 : 4;
    void* tokens = allocate_bytes(ArrayId::kEdgeTokens, num_edges_, bytes, false);
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
    for (Level& level : levels_) free_vector(&level.edge_tokens);
    return_freed_memory();
    memory_.shrink(num_edges_ * sizeof(std::uint32_t));
  }

  void store_nodes() {
    constexpr std::uint64_t kPerPoll = 1 << 18;
    const std::uint64_t num_nodes = header_.num_nodes, num_words = RankedBitmap::num_words(num_edges_);
    auto* indptr = allocate<std::uint32_t>(ArrayId::kEdgeIndptr, num_nodes + 1);
    auto* to_node = allocate<std::uint64_t>(ArrayId::kEdgeToNode, num_words);
    auto* leaf_begin = allocate<std::uint32_t>(ArrayId::kLeafBegin, num_nodes);
    auto* prefix = allocate<std::uint32_t>(ArrayId::kLeafPrefix, num_nodes + 1);
    std::uint64_t n = 0;
    for (const Level& level : levels_) {
      for (std::uint64_t i = 0; i < level.nodes.size(); ++i, ++n) {
        if (n % kPerPoll == 0) poll_(0);
        const Node& node = level.nodes[i];
        indptr[n] = level.first_edge[i];
        prefix[n + 1] = prefix[n] + (node.end - node.begin - 1);
        if (n > 0) to_node[node.edge >> 5] |= std::uint64_t{1} << (node.edge & 31);
      }
    }
    indptr[num_nodes] = static_cast<std::uint32_t>(num_edges_);
    RankedBitmap::index(to_node, num_words);

    for (n = 0; n < num_nodes; ++n) {
      header_.max_branching = std::max<std::uint64_t>(header_.max_branching, indptr[n + 1] - indptr[n]);
    }
    for (Level& level : levels_) free_vector(&level.first_edge);
    memory_.shrink(num_nodes * sizeof(std::uint32_t));
    order_.emplace(levels_, leaf_begin, poll_);
  }

  static void raise_to(std::atomic<std::uint64_t>* greatest, std::uint64_t value) {
    std::uint64_t current = greatest->load(std::memory_order_relaxed);
    while (value > current && !greatest->compare_exchange_weak(current, value)) {
    }
  }

  /// Position of the first token that is forced on the way to the leaves [begin, end) of the catalog: right behind the
  /// token chosen at the node above, which is where they part from their neighbours.
  std::uint32_t run_begin(std::uint32_t begin, std::uint32_t end) const {
    return std::max(leaves_.shared()[begin], leaves_.shared()[end]) + 1;
  }

  /// Calls visit(leaf, begin, end) for the targets [first, last): the tokens [begin, end) of that leaf of the catalog
  /// are the run.
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
    SegmentCursor cursor(leaves_);
    const auto visit_leaf = [&](std::uint32_t leaf) {
      const Segment& segment = cursor.seek(leaf);
      visit(leaf, run_begin(leaf, leaf + 1), segment.length(leaf - cursor.begin()));
    };
    order_->for_each(static_cast<std::uint32_t>(std::max(first, passed) - passed),
                     static_cast<std::uint32_t>(last - passed), visit_leaf);
  }

  void store_runs() {
    constexpr std::uint64_t kBlock = TrieView::kRunBlock, kTargetsPerChunk = kBlock << 8;
    const std::uint64_t num_targets = header_.num_nodes + header_.num_leaves;
    const std::uint64_t num_chunks = num_targets / kTargetsPerChunk + 1;
    auto* blocks = allocate<std::uint64_t>(ArrayId::kRunBlocks, num_targets / kBlock + 1);
    std::vector<std::uint64_t> chunk_begin(num_chunks + 1, 0);
    std::atomic<std::uint64_t> max_offset{0};
    // The run after the last one is empty: it stands for where the last one ends.
    parallel_for(
        num_targets + 1, num_threads_, kTargetsPerChunk,
        [&](std::uint64_t begin, std::uint64_t end) {
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
        },
        poll_);
    for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) chunk_begin[chunk + 1] += chunk_begin[chunk];
    header_.num_run_tokens = chunk_begin[num_chunks];
    header_.run_offset_bits = bit_width(max_offset);
    const auto offset_bits = static_cast<std::uint32_t>(header_.run_offset_bits);
    const auto token_bits = static_cast<std::uint32_t>(header_.run_token_bits);
    auto* offsets = allocate<std::uint32_t>(ArrayId::kRunOffsets, PackedView::num_words(num_targets + 1, offset_bits));
    auto* tokens =
        allocate<std::uint32_t>(ArrayId::kRunTokens, PackedView::num_words(header_.num_run_tokens, token_bits));
    parallel_for(
        num_targets + 1, num_threads_, kTargetsPerChunk,
        [&](std::uint64_t begin, std::uint64_t end) {
          const std::uint64_t start = chunk_begin[begin / kTargetsPerChunk];
          std::uint64_t target = begin, at = start;
          PackedWriter write_offset(offsets, offset_bits, begin), write_token(tokens, token_bits, at);
          LeafReader reader(leaves_);
          const auto place = [&](std::uint64_t length) {
            if (target % kBlock == 0) blocks[target / kBlock] += start;
            write_offset.push(static_cast<std::uint32_t>(at - blocks[target / kBlock]));
            at += length;
            ++target;
          };
          for_each_run(begin, std::min(end, num_targets),
                       [&](std::uint32_t leaf, std::uint32_t from, std::uint32_t to) {
                         place(to - from);
                         if (from == to) return;
                         reader.seek(leaf);
                         for (std::uint32_t position = from; position < to; ++position)
                           write_token.push(reader.token(position));
                       });
          if (end > num_targets) place(0);
        },
        poll_);
  }

  void store_items() {
    for (Segment& segment : catalog_.segments) {  // the runs were read
      free_vector(&segment.tokens);
      free_vector(&segment.offsets);
      segment.stored = Lengths();
    }
    return_freed_memory();
    const bool is_big = std::any_of(catalog_.segments.begin(), catalog_.segments.end(),
                                    [](const Segment& segment) { return !segment.big_items.empty(); });
    const std::uint64_t num_leaves = header_.num_leaves;
    const bool one_each = header_.num_items == num_leaves;
    void* ids = allocate_bytes(ArrayId::kItemIds, header_.num_items, is_big ? 8 : 4, true);
    auto* indptr = allocate<std::uint32_t>(ArrayId::kItemIndptr, one_each ? 0 : num_leaves + 1);
    const auto for_each_leaf = [&](const auto& visit) {  // visit(leaf, its segment, its items there [begin, end))
      parallel_for(
          num_leaves, num_threads_, std::uint64_t{1} << 16,
          [&](std::uint64_t begin, std::uint64_t end) {
            SegmentCursor cursor(leaves_);
            std::uint64_t leaf = begin;
            const auto visit_leaf = [&](std::uint32_t sorted) {
              const Segment& segment = cursor.seek(sorted);
              const std::uint32_t place = sorted - cursor.begin();
              const auto [first, last] = std::equal_range(segment.repeats.begin(), segment.repeats.end(), place);
              visit(leaf++, segment, place + static_cast<std::uint64_t>(first - segment.repeats.begin()),
                    place + 1 + static_cast<std::uint64_t>(last - segment.repeats.begin()));
            };
            order_->for_each(static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end), visit_leaf);
          },
          poll_);
    };
    if (!one_each) {
      for_each_leaf([&](std::uint64_t leaf, const Segment&, std::uint64_t begin, std::uint64_t end) {
        indptr[leaf + 1] = static_cast<std::uint32_t>(end - begin);
      });
      std::partial_sum(indptr, indptr + num_leaves + 1, indptr);
    }
    for_each_leaf([&](std::uint64_t leaf, const Segment& segment, std::uint64_t begin, std::uint64_t end) {
      const auto copy = [&](auto* to) {
        using Stored = std::remove_pointer_t<decltype(to)>;
        to += one_each ? leaf : indptr[leaf];
        for (std::uint64_t i = begin; i < end; ++i) *to++ = static_cast<Stored>(segment.item(i));
      };
      is_big ? copy(static_cast<std::int64_t*>(ids)) : copy(static_cast<std::int32_t*>(ids));
    });
  }

  FrontCoded catalog_;
  int num_threads_;
  const Tick& tick_;
  double share_ = 0.0;  ///< of the work done before the loop at hand
  const std::function<void(std::uint64_t)> poll_ = [this](std::uint64_t) { tick_(share_); };
  MemoryShare memory_;
  Leaves leaves_;
  TrieHeader header_;
  std::shared_ptr<ArrayStorage> storage_ = std::make_shared<ArrayStorage>();
  std::vector<Level> levels_;
  std::uint64_t num_edges_ = 0;
  std::optional<LeafOrder> order_;
};

}  // namespace

std::shared_ptr<const Trie> lay_out(FrontCoded catalog, const BuildOptions& options, int num_threads,
                                    MemoryBudget* budget, const Tick& tick) {
  return Layout(std::move(catalog), options, num_threads, budget, tick).run();
}

}  // namespace gentrie
