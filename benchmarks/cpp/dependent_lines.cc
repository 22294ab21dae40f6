// Cache lines that wait for each other in one child lookup: dependent_lines FILE prints one line,
// LEAST MOST MEAN MEAN_MISSED STEPS.
//
// TrieView::advance() is done again with every read recorded: at which 64-byte line, and after how many other lines
// that its address was computed from. Branches are predicted and wait for nothing; prefetched lines count from where
// they are prefetched. Each result is compared with advance(). MEAN_MISSED counts only lines that a cache of 32 KiB
// (least recently used, all lookups one after the other) does not hold.

#include <algorithm>
#include <cstdio>
#include <list>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gentrie/file.h"

namespace {

using gentrie::State;
using gentrie::Token;
using gentrie::TrieView;

/// A value, and after how many lines it is known: all of them, and those that were not in the cache.
struct Known {
  std::uint32_t lines = 0;
  std::uint32_t misses = 0;
};

Known later(Known a, Known b) { return {std::max(a.lines, b.lines), std::max(a.misses, b.misses)}; }

/// The lines of one lookup, before a cache that outlives it.
class Lines {
 public:
  void start() { touched_.clear(); }

  /// When what lies at [data, data + nbytes) is known, its address being known at `address`.
  Known read(const void* data, std::size_t nbytes, Known address) {
    const auto first = reinterpret_cast<std::uintptr_t>(data) / 64;
    const auto last = (reinterpret_cast<std::uintptr_t>(data) + nbytes - 1) / 64;
    Known known = address;
    for (auto line = first; line <= last; ++line) {
      const auto found = touched_.find(line);
      if (found == touched_.end()) {
        const std::uint32_t miss = is_cached(line) ? 0 : 1;
        known = later(known, touched_[line] = {address.lines + 1, address.misses + miss});
      } else {
        known = later(known, found->second);
      }
    }
    return known;
  }

 private:
  static constexpr std::size_t kCached = 512;

  bool is_cached(std::uintptr_t line) {
    const auto found = places_.find(line);
    const bool is_there = found != places_.end();
    if (is_there) order_.erase(found->second);
    order_.push_front(line);
    places_[line] = order_.begin();
    if (order_.size() > kCached) {
      places_.erase(order_.back());
      order_.pop_back();
    }
    return is_there;
  }

  std::unordered_map<std::uintptr_t, Known> touched_;
  std::list<std::uintptr_t> order_;
  std::unordered_map<std::uintptr_t, std::list<std::uintptr_t>::iterator> places_;
};

class Lookup {
 public:
  Lookup(const TrieView& view, Lines* lines) : view_(view), lines_(*lines) {}

  /// The child state of a branching place; *known is when it is known.
  State child(std::uint32_t node, Token token, Known* known) {
    const Known edges_known = lines_.read(view_.edge_indptr + node, 8, {});
    const gentrie::EdgeRange range = view_.edges(node);
    const Known first_bits = prefetch_bits(range.begin, edges_known);
    prefetch_bits(range.end, edges_known);
    const Known first_known = lines_.read(view_.leaf_begin + node, 4, {});
    Known edge_known = edges_known;
    const std::uint32_t edge = find_edge(node, range, token, &edge_known);
    *known = lines_.read(view_.edge_to_node.words + (edge >> 5), 8, edge_known);
    std::uint64_t target = view_.next_node(edge);
    if (!view_.edge_to_node.test(edge)) {
      target = std::uint64_t{view_.num_nodes} + view_.leaf_at(node, range.begin, edge);
      *known = later(*known, later(first_known, first_bits));
    }
    *known = later(offset(target, *known), offset(target + 1, *known));
    return TrieView::make_state(target, view_.run_length(target));
  }

 private:
  Known prefetch_bits(std::uint32_t edge, Known known) {
    return lines_.read(view_.edge_to_node.words + (edge >> 5), 8, known);
  }

  Known offset(std::uint64_t target, Known known) {
    const std::uint64_t bit = target * view_.run_offsets.bits;
    const char* word = reinterpret_cast<const char*>(view_.run_offsets.words) + (bit >> 3);
    return later(lines_.read(view_.run_blocks + target / TrieView::kRunBlock, 8, known), lines_.read(word, 8, known));
  }

  Known read_token(std::uint32_t edge, Known known) {
    const std::size_t width = view_.edge_token_bytes;
    return lines_.read(static_cast<const char*>(view_.edge_tokens) + edge * width, width, known);
  }

  /// As TrieView::find_edge_in().
  std::uint32_t find_edge(std::uint32_t node, gentrie::EdgeRange range, Token token, Known* known) {
    if (node == 0 && view_.root_index.range > 0) {
      const auto place = static_cast<std::uint32_t>(token - view_.root_index.first);
      *known = lines_.read(view_.root_index.present.words + (place >> 5), 8, {});
      return view_.find_edge(node, range, token);
    }
    Known index_known;
    if (const std::uint32_t place = static_cast<std::uint32_t>(token - view_.token_index.first);
        view_.token_index.range > 0) {
      index_known = lines_.read(view_.token_index.present.words + (place >> 5), 8, {});
    } else {
      search(0, view_.num_tokens, token, &index_known, [this](std::uint32_t index, Known at) {
        const Token* id = view_.vocabulary + index;
        return std::make_pair(*id, lines_.read(id, sizeof *id, at));
      });
    }
    *known = later(*known, index_known);
    return find_distinct(range, view_.index_of(token), known);
  }

  /// As gentrie::find_ascending(); `at` gives a value and when it is known.
  template <typename Value, typename At>
  std::uint32_t search(std::uint32_t begin, std::uint32_t end, Value value, Known* known, const At& at) {
    for (std::uint32_t length = end - begin; length > 1;) {
      const std::uint32_t half = length / 2;
      const auto [middle, when] = at(begin + half - 1, *known);
      *known = when;
      if (middle < value) begin += half;
      length -= half;
    }
    at(begin, *known);
    return begin;
  }

  /// As gentrie::find_distinct().
  std::uint32_t find_distinct(gentrie::EdgeRange range, std::uint32_t value, Known* known) {
    constexpr std::uint32_t kMany = 64;
    const std::uint32_t size = range.size();
    const auto at = [&](std::uint32_t place, Known when) {
      return std::make_pair(view_.edge_token_index(range.begin + place), read_token(range.begin + place, when));
    };
    if (size < kMany) {
      for (std::uint32_t place = 0; place < size; ++place) at(place, *known);
      return range.begin + search(0, size, value, known, at);
    }
    std::uint32_t begin = 0, end = size, first = 0;
    std::uint64_t span = view_.num_tokens;
    for (int attempt = 0; attempt < 3; ++attempt) {
      const auto guess = begin + static_cast<std::uint32_t>(std::uint64_t{value - first} * (end - begin) / span);
      const std::uint32_t reach = gentrie::reach_of(end - begin);
      const std::uint32_t low = std::max(guess, begin + reach) - reach, high = std::min(guess + reach, end);
      for (std::uint32_t place = low; place < high; ++place) at(place, *known);
      prefetch_bits(range.begin + low, *known);
      prefetch_bits(range.begin + high, *known);
      const bool is_before = low > begin && at(low, *known).first > value;
      const bool is_behind = high < end && at(high, *known).first <= value;
      if (!is_before && !is_behind) return range.begin + search(low, high, value, known, at);
      (is_behind ? begin : end) = is_behind ? high : low;
      const auto [least, least_known] = at(begin, *known);
      const auto [most, most_known] = at(end - 1, *known);
      *known = later(least_known, most_known);
      first = least;
      span = std::uint64_t{most - least} + 1;
    }
    return range.begin + search(begin, end, value, known, at);
  }

  const TrieView& view_;
  Lines& lines_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: dependent_lines FILE\n"), 2;
  const auto trie = gentrie::load_trie(argv[1], {});
  const TrieView& view = trie->view();
  std::mt19937 random(0);
  std::vector<std::pair<State, Token>> lookups;
  std::uniform_int_distribution<std::uint32_t> any_leaf(0, view.num_leaves - 1);
  for (int i = 0; i < 100'000; ++i) {
    std::vector<Token> tokens;
    trie->append_sequence(any_leaf(random), &tokens);
    State state = gentrie::kRoot;
    for (const Token token : tokens) {
      if (TrieView::remaining_of(state) == 0) lookups.emplace_back(state, token);
      state = view.advance(state, token);
    }
  }
  std::shuffle(lookups.begin(), lookups.end(), random);
  Lines lines;
  Lookup lookup(view, &lines);
  std::uint32_t least = ~0U, most = 0;
  double sum = 0, misses = 0;
  for (const auto& [state, token] : lookups) {
    lines.start();
    Known known;
    const State child = lookup.child(static_cast<std::uint32_t>(TrieView::target_of(state)), token, &known);
    if (child != view.advance(state, token)) return std::fprintf(stderr, "not the child of advance()\n"), 1;
    least = std::min(least, known.lines);
    most = std::max(most, known.lines);
    sum += known.lines;
    misses += known.misses;
  }
  const auto count = static_cast<double>(lookups.size());
  std::printf("%u %u %.3f %.3f %zu\n", least, most, sum / count, misses / count, lookups.size());
}
