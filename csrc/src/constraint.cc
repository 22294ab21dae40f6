#include "gentrie/constraint.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gentrie {

namespace {

void check_control_token(const TrieView& view, std::int64_t vocab_size, const char* name, Token token) {
  if (token < 0 || token >= vocab_size) {
    throw std::invalid_argument(std::string(name) + "=" + std::to_string(token) +
                                " is outside [0, vocab_size=" + std::to_string(vocab_size) + ")");
  }
  if (token != view.end_token && view.index_of(token) != view.num_tokens) {
    throw std::invalid_argument(std::string(name) + "=" + std::to_string(token) +
                                " is also a token of the catalog's sequences");
  }
}

}  // namespace

Constraint::Constraint(std::shared_ptr<const Trie> trie, ConstraintOptions options,
                       std::shared_ptr<const ItemFilter> filter)
    : trie_(std::move(trie)), options_(std::move(options)), filter_(std::move(filter)) {
  if (filter_ && !is_same_catalog(filter_->trie(), *trie_)) {
    throw std::invalid_argument("item_filter belongs to the trie " + filter_->trie().fingerprint() + ", not to " +
                                trie_->fingerprint());
  }
  const std::int64_t vocab_size = std::max<std::int64_t>(view().vocab_size, options_.vocab_size);
  if (is_triggered()) {
    check_control_token(view(), vocab_size, "begin_token_id", options_.begin_token);
    if (options_.begin_token == view().end_token) {
      throw std::invalid_argument("begin_token_id=" + std::to_string(options_.begin_token) +
                                  " is the trie's end token");
    }
  } else if (options_.eos_tokens.empty() && view().end_token != kNoToken) {
    options_.eos_tokens.push_back(view().end_token);
  }
  std::vector<Token>& eos = options_.eos_tokens;
  std::sort(eos.begin(), eos.end());
  eos.erase(std::unique(eos.begin(), eos.end()), eos.end());
  for (const Token token : eos) {
    check_control_token(view(), vocab_size, "eos_token_id", token);
    if (is_triggered() && (token == view().end_token || token == options_.begin_token)) {
      throw std::invalid_argument("eos_token_id=" + std::to_string(token) + " is the " +
                                  (token == options_.begin_token ? "begin" : "trie's end") +
                                  " token; with begin_token_id it must be one of its own");
    }
  }
}

bool Constraint::is_eos(Token token) const {
  return std::find(options_.eos_tokens.begin(), options_.eos_tokens.end(), token) != options_.eos_tokens.end();
}

Cursor Constraint::start() const {
  Cursor cursor;
  cursor.state = is_triggered() ? kFreeText : kRoot;
  return cursor;
}

std::uint32_t Constraint::advance(Cursor* cursor, Token token) const {
  if (cursor->finished) return kNoLeaf;
  if (is_triggered() && token == options_.begin_token) {
    cursor->state = kRoot;
    return kNoLeaf;
  }
  if (is_triggered() && is_eos(token)) {
    cursor->state = kFreeText;
    cursor->spent.clear();
    return kNoLeaf;
  }
  if (cursor->state == kFreeText) return kNoLeaf;
  const bool was_complete = is_complete(*cursor);
  if (!is_triggered() && is_eos(token) &&
      (was_complete || cursor->state == kOffTrie || num_left(*cursor, view().leaves_below(cursor->state)) == 0)) {
    cursor->finished = true;
    return kNoLeaf;
  }
  cursor->state = view().advance(cursor->state, token);
  return complete(cursor);
}

std::uint32_t Constraint::complete(Cursor* cursor) const {
  if (!is_complete(*cursor)) return kNoLeaf;
  std::uint32_t spent = kNoLeaf;
  if (options_.unique != Unique::kNo) {
    spent = view().leaf_of(cursor->state);
    spend(cursor, spent);
  }
  if (is_triggered()) {
    cursor->state = kFreeText;
  } else {
    cursor->finished = options_.eos_tokens.empty() || is_eos(view().end_token);
  }
  return spent;
}

bool Constraint::allows(const Cursor& cursor, Token token) const {
  if (token < 0 || cursor.state == kOffTrie) return false;
  if (cursor.finished) return is_eos(token);
  if (cursor.state == kFreeText) {
    if (options_.vocab_size > 0 && token >= options_.vocab_size) return false;
    return token != options_.begin_token || num_left(cursor, view().leaves_below(kRoot)) > 0;
  }
  if (is_complete(cursor)) return is_eos(token);
  const State next = view().advance(cursor.state, token);
  if (next != kOffTrie) return num_left(cursor, view().leaves_below(next)) > 0;
  return is_eos(token) && num_left(cursor, view().leaves_below(cursor.state)) == 0;
}

Verdict Constraint::allowed(const Cursor& cursor, std::vector<Token>* tokens) const {
  const auto append_eos = [&] {
    tokens->insert(tokens->end(), options_.eos_tokens.begin(), options_.eos_tokens.end());
  };
  if (cursor.state == kFreeText) {
    return num_left(cursor, view().leaves_below(kRoot)) > 0 ? Verdict::kFree : Verdict::kFreeNoBegin;
  }
  if (cursor.finished || is_complete(cursor)) {
    append_eos();
    return Verdict::kFinished;
  }
  if (cursor.state == kOffTrie) {
    append_eos();
    return Verdict::kDead;
  }
  const std::size_t before = tokens->size();
  if (TrieView::remaining_of(cursor.state) == 0) {
    append_open_edges(cursor, static_cast<std::uint32_t>(TrieView::target_of(cursor.state)), tokens);
  } else if (num_left(cursor, view().leaves_below(cursor.state)) > 0) {
    tokens->push_back(view().next_run_token(cursor.state));
  }
  if (tokens->size() > before) return Verdict::kItem;
  append_eos();
  return Verdict::kEmptied;
}

void Constraint::forced(const Cursor& cursor, std::vector<Token>* tokens) const {
  Cursor ahead = cursor;
  std::vector<Token> next;
  const std::size_t longest = tokens->size() + view().max_depth;  // runs of a damaged file may overlap
  while (ahead.state >= 0 && !ahead.finished && !is_complete(ahead) && tokens->size() < longest) {
    next.clear();
    if (allowed(ahead, &next) != Verdict::kItem || next.size() != 1) return;
    tokens->push_back(next[0]);
    advance(&ahead, next[0]);
  }
}

void Constraint::spend(Cursor* cursor, std::uint32_t leaf) const {
  const auto at = std::lower_bound(cursor->spent.begin(), cursor->spent.end(), leaf,
                                   [](const Spent& spent, std::uint32_t value) { return spent.leaf < value; });
  if (at != cursor->spent.end() && at->leaf == leaf) {
    ++at->times;
  } else {
    cursor->spent.insert(at, {leaf, 1});
  }
}

bool Constraint::is_used_up(const Spent& spent) const {
  if (filter_ && !filter_->allows_leaf(spent.leaf)) return false;  // not among those counted as left
  if (options_.unique != Unique::kItem) return true;
  const auto [begin, end] = view().items_of_leaf(spent.leaf);
  return spent.times >= (filter_ ? filter_->num_items_of(spent.leaf) : end - begin);
}

std::uint32_t Constraint::num_used_up(const Cursor& cursor, LeafRange range) const {
  auto at = std::lower_bound(cursor.spent.begin(), cursor.spent.end(), range.begin,
                             [](const Spent& spent, std::uint32_t value) { return spent.leaf < value; });
  std::uint32_t used_up = 0;
  for (; at != cursor.spent.end() && at->leaf < range.end; ++at) used_up += is_used_up(*at) ? 1 : 0;
  return used_up;
}

std::uint32_t Constraint::num_left(const Cursor& cursor, LeafRange range) const {
  return (filter_ ? filter_->count(range) : range.size()) - num_used_up(cursor, range);
}

void Constraint::append_open_edges(const Cursor& cursor, std::uint32_t node, std::vector<Token>* tokens) const {
  const EdgeRange range = view().edges(node);
  if (filter_ && cursor.spent.empty()) {
    filter_->append_open_edges(node, tokens);
    return;
  }
  if (filter_) {
    for (std::uint32_t edge = range.begin; edge < range.end; ++edge) {
      if (num_left(cursor, view().leaves_of_edge(node, edge)) > 0) {
        tokens->push_back(view().token_at(view().edge_token_index(edge)));
      }
    }
    return;
  }
  // Without a filter only edges above a used-up leaf can be closed: find those, take all the others.
  std::vector<std::uint32_t> closed;
  const LeafRange below = view().leaves_below(static_cast<State>(node));
  for (const Spent& spent : cursor.spent) {
    if (spent.leaf < below.begin || spent.leaf >= below.end) continue;
    const std::uint32_t above = view().edge_above(node, spent.leaf);
    if (num_left(cursor, view().leaves_of_edge(node, above)) == 0) closed.push_back(above);
  }
  std::sort(closed.begin(), closed.end());
  std::uint32_t edge = range.begin;
  const auto take_until = [&](std::uint32_t end) {
    for (; edge < end; ++edge) tokens->push_back(view().token_at(view().edge_token_index(edge)));
  };
  tokens->reserve(tokens->size() + range.size());
  for (const std::uint32_t above : closed) {
    take_until(above);
    edge = above + 1;
  }
  take_until(range.end);
}

}  // namespace gentrie
