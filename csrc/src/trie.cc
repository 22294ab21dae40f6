#include "gentrie/trie.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "item_index.h"
#include "parallel.h"
#include "poll.h"
#include "xxhash64.h"

namespace gentrie {

const char* array_name(ArrayId id) {
  static constexpr const char* kNames[kNumArrays] = {
      "vocabulary", "edge_indptr", "edge_tokens", "edge_to_node", "leaf_begin", "leaf_prefix",
      "run_tokens", "run_blocks",  "run_offsets", "item_indptr",  "item_ids",
  };
  return kNames[static_cast<std::size_t>(id)];
}

std::array<std::uint64_t, kNumArrays> checksums_of(const ArrayTable& arrays, int num_threads, const Poll& poll) {
  std::array<std::size_t, kNumArrays> largest_first;
  std::iota(largest_first.begin(), largest_first.end(), 0);
  std::sort(largest_first.begin(), largest_first.end(),
            [&](std::size_t a, std::size_t b) { return arrays[a].nbytes() > arrays[b].nbytes(); });
  constexpr std::uint64_t kWorthThreads = std::uint64_t{1} << 22;
  if (arrays[largest_first[0]].nbytes() < kWorthThreads) num_threads = 1;
  std::array<std::uint64_t, kNumArrays> checksums{};
  constexpr std::uint64_t kPart = std::uint64_t{1} << 24;
  parallel_for(
      kNumArrays, num_threads, 1,
      [&](std::uint64_t begin, std::uint64_t, const auto& checkpoint) {
        const ArrayRef& array = arrays[largest_first[begin]];
        Xxhash64 hash;
        for (std::uint64_t at = 0; at < array.padded_nbytes(); at += kPart) {
          hash.update(static_cast<const char*>(array.data) + at, std::min(kPart, array.padded_nbytes() - at));
          checkpoint();
        }
        checksums[largest_first[begin]] = hash.digest();
      },
      as_tick(poll));
  return checksums;
}

bool is_same_catalog(const Trie& a, const Trie& b) {
  if (&a == &b) return true;
  const auto counts = [](const Trie& trie) {
    const TrieHeader& header = trie.header();
    return std::array<std::uint64_t, 6>{header.num_nodes,       header.num_leaves,
                                        header.num_items,       header.num_run_tokens,
                                        trie.view().num_tokens, static_cast<std::uint64_t>(header.vocab_size)};
  };
  return a.fingerprint() == b.fingerprint() && counts(a) == counts(b);
}

std::string fingerprint_of(const TrieHeader& header, const ArrayTable& arrays,
                           const std::array<std::uint64_t, kNumArrays>& checksums) {
  std::vector<std::uint64_t> words = {static_cast<std::uint64_t>(header.vocab_size),
                                      static_cast<std::uint64_t>(header.end_token_id), header.num_nodes,
                                      header.num_leaves, header.num_items};
  for (std::size_t i = 0; i < kNumArrays; ++i) {
    words.push_back(arrays[i].count);
    words.push_back(checksums[i]);
  }
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx",
                static_cast<unsigned long long>(xxhash64(words.data(), words.size() * sizeof words[0])));
  return digits;
}

namespace {

/// An index of `tokens`, whose bitmap goes to `words`; none where the tokens lie so far apart that it would outweigh
/// them.
RankedTokens make_index(const Token* tokens, std::uint32_t num_tokens, std::vector<std::uint64_t>* words) {
  constexpr std::uint64_t kFarApart = 64, kAlways = 1 << 18;
  if (num_tokens == 0) return {};
  const Token first = tokens[0], last = tokens[num_tokens - 1];
  const std::uint64_t range = last < first ? 0 : static_cast<std::uint64_t>(std::int64_t{last} - first) + 1;
  if (range == 0 || range > kFarApart * num_tokens + kAlways) return {};
  std::vector<std::uint64_t> bits(RankedBitmap::num_words(range));
  for (std::uint32_t i = 0; i < num_tokens; ++i) {
    if (tokens[i] < first || tokens[i] > last) return {};  // of a damaged file
    const auto place = static_cast<std::uint64_t>(std::int64_t{tokens[i]} - first);
    bits[place >> 5] |= std::uint64_t{1} << (place & 31);
  }
  RankedBitmap::index(bits.data(), bits.size());
  *words = std::move(bits);
  return {{words->data()}, first, static_cast<std::uint32_t>(range)};
}

/// The first tokens of the root's edges.
std::vector<Token> root_tokens(const TrieView& view) {
  std::vector<Token> tokens;
  const EdgeRange range = view.num_nodes > 0 ? view.edges(0) : EdgeRange{};
  for (std::uint32_t edge = range.begin; edge < range.end; ++edge) {
    tokens.push_back(view.token_at(view.edge_token_index(edge)));
  }
  return tokens;
}

TrieView make_view(const TrieHeader& header, const ArrayTable& arrays) {
  const auto at = [&](ArrayId id) -> const ArrayRef& { return arrays[static_cast<std::size_t>(id)]; };
  TrieView view;
  view.num_nodes = static_cast<std::uint32_t>(header.num_nodes);
  view.num_leaves = static_cast<std::uint32_t>(header.num_leaves);
  view.num_edges = static_cast<std::uint32_t>(at(ArrayId::kEdgeTokens).count);
  view.num_items = header.num_items;
  view.num_run_tokens = header.num_run_tokens;
  view.vocab_size = static_cast<std::int32_t>(header.vocab_size);
  view.end_token = static_cast<Token>(header.end_token_id);
  view.num_tokens = static_cast<std::uint32_t>(at(ArrayId::kVocabulary).count);
  view.max_depth = static_cast<std::uint32_t>(header.max_depth);
  view.max_branching = static_cast<std::uint32_t>(header.max_branching);
  view.edge_token_bytes = at(ArrayId::kEdgeTokens).itemsize;
  view.item_id_bytes = at(ArrayId::kItemIds).itemsize;

  view.vocabulary = static_cast<const Token*>(at(ArrayId::kVocabulary).data);
  view.edge_indptr = static_cast<const std::uint32_t*>(at(ArrayId::kEdgeIndptr).data);
  view.edge_tokens = at(ArrayId::kEdgeTokens).data;
  view.edge_to_node.words = static_cast<const std::uint64_t*>(at(ArrayId::kEdgeToNode).data);
  view.leaf_begin = static_cast<const std::uint32_t*>(at(ArrayId::kLeafBegin).data);
  view.leaf_prefix = static_cast<const std::uint32_t*>(at(ArrayId::kLeafPrefix).data);
  view.run_tokens = {static_cast<const std::uint32_t*>(at(ArrayId::kRunTokens).data),
                     static_cast<std::uint32_t>(header.run_token_bits)};
  view.run_blocks = static_cast<const std::uint64_t*>(at(ArrayId::kRunBlocks).data);
  view.run_offsets = {static_cast<const std::uint32_t*>(at(ArrayId::kRunOffsets).data),
                      static_cast<std::uint32_t>(header.run_offset_bits)};
  const ArrayRef& item_indptr = at(ArrayId::kItemIndptr);
  view.item_indptr = item_indptr.count == 0 ? nullptr : static_cast<const std::uint32_t*>(item_indptr.data);
  view.item_ids = at(ArrayId::kItemIds).data;
  return view;
}

}  // namespace

Trie::Trie(const TrieHeader& header, const ArrayTable& arrays, std::shared_ptr<const void> storage,
           std::string fingerprint, std::map<std::string, std::string> metadata, FileStamp file)
    : header_(header),
      arrays_(arrays),
      storage_(std::move(storage)),
      view_(make_view(header, arrays)),
      fingerprint_(std::move(fingerprint)),
      metadata_(std::move(metadata)),
      file_(std::move(file)) {
  view_.token_index = make_index(view_.vocabulary, view_.num_tokens, &token_bits_);
  const std::vector<Token> first = root_tokens(view_);
  view_.root_index = make_index(first.data(), static_cast<std::uint32_t>(first.size()), &root_bits_);
  if (fingerprint_.empty()) fingerprint_ = fingerprint_of(header_, arrays_, checksums_of(arrays_));
}

Trie::~Trie() { delete item_index_.load(); }

const ItemIndex& Trie::item_index(const Poll& poll) const {
  // One thread makes it, others wait for that one. In a process forked meanwhile there is no such thread, and a lock
  // that it held would stay locked for ever: the maker's process is noted instead, and whoever is in another takes
  // over.
  const int self = ::getpid();
  while (true) {
    if (const ItemIndex* index = item_index_.load(std::memory_order_acquire)) return *index;
    int maker = item_index_maker_.load();
    if (maker == self) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (poll) poll();
    } else if (item_index_maker_.compare_exchange_strong(maker, self)) {
      try {
        if (item_index_.load() == nullptr) item_index_.store(new ItemIndex(view_, poll), std::memory_order_release);
      } catch (...) {
        item_index_maker_.store(0);
        throw;
      }
      item_index_maker_.store(0);
    }
  }
}

std::uint64_t Trie::item_index_nbytes() const {
  const ItemIndex* index = item_index_.load(std::memory_order_acquire);
  return index == nullptr ? 0 : index->nbytes();
}

namespace {

[[noreturn]] void fail_contradiction() {
  throw FormatError("the trie's arrays contradict each other; verify the file");
}

/// Follows `edge` of `node` and appends its token and those of the run behind it; returns the target. Runs of a damaged
/// file may overlap: `tokens` does not grow beyond `limit`.
std::uint64_t append_edge(const TrieView& view, std::uint32_t node, std::uint32_t edge, std::size_t limit,
                          std::vector<Token>* tokens) {
  const State state = edge < view.num_edges ? view.follow(node, view.edges(node), edge) : kOffTrie;
  if (state == kOffTrie) fail_contradiction();
  const std::uint64_t target = TrieView::target_of(state);
  if (TrieView::remaining_of(state) + 1 > limit - std::min(tokens->size(), limit)) fail_contradiction();
  tokens->push_back(view.token_at(view.edge_token_index(edge)));
  const std::uint64_t end = view.run_end(target);
  for (std::uint64_t at = end - TrieView::remaining_of(state); at < end; ++at) tokens->push_back(view.run_token(at));
  return target;
}

}  // namespace

void Trie::append_sequence(std::uint32_t leaf, std::vector<Token>* tokens) const {
  if (leaf >= view_.num_leaves) {
    throw std::out_of_range("leaf " + std::to_string(leaf) +
                            " is not below num_sequences=" + std::to_string(view_.num_leaves));
  }
  const std::size_t limit = tokens->size() + view_.max_depth;
  for (std::uint64_t target = 0; target < view_.num_nodes;) {
    const auto node = static_cast<std::uint32_t>(target);
    target = append_edge(view_, node, view_.edge_above(node, leaf), limit, tokens);
  }
}

void Trie::for_each_sequence(const std::function<void(std::uint32_t leaf, const std::vector<Token>& tokens)>& visit,
                             const Poll& poll) const {
  StepPoll polled(poll);
  struct Place {
    std::uint32_t node;
    EdgeRange left;      // edges still to follow
    std::size_t length;  // tokens before
  };
  std::vector<Place> path{{0, view_.edges(0), 0}};
  std::vector<Token> tokens;
  std::uint64_t num_visited = 0, num_items = 0;
  for (std::uint64_t num_followed = 0; !path.empty();) {
    Place& place = path.back();
    tokens.resize(place.length);
    if (place.left.size() == 0) {
      path.pop_back();
      continue;
    }
    if (++num_followed > view_.num_edges) fail_contradiction();
    const std::uint64_t target = append_edge(view_, place.node, place.left.begin++, view_.max_depth, &tokens);
    polled(tokens.size());
    if (target >= view_.num_nodes) {
      const auto leaf = static_cast<std::uint32_t>(target - view_.num_nodes);
      const auto [first, last] = view_.items_of_leaf(leaf);
      num_items += last - first;
      if (++num_visited > view_.num_leaves || num_items > view_.num_items) fail_contradiction();
      visit(leaf, tokens);
    } else {
      const auto node = static_cast<std::uint32_t>(target);
      path.push_back({node, view_.edges(node), tokens.size()});
    }
  }
  if (num_visited != view_.num_leaves) fail_contradiction();
}

}  // namespace gentrie
