#include "gentrie/history.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "poll.h"

namespace gentrie {

namespace {

/// Ids outside the vocabulary match nothing.
Token narrowed(std::int64_t id) { return id >= 0 && id <= 0x7FFFFFFF ? static_cast<Token>(id) : kNoToken; }

bool is_free(Verdict verdict) { return verdict == Verdict::kFree || verdict == Verdict::kFreeNoBegin; }

/// Which of `entries` a row uses, where each serves as many adjacent rows.
std::uint64_t entry_of(std::uint64_t row, std::uint64_t rows, std::uint64_t entries) { return row / (rows / entries); }

/// One behind the last occurrence of `token`, or `begin`. Eight at a time, which compilers turn into wide comparisons.
template <typename Id>
const Id* behind_last(const Id* begin, const Id* end, Token token) {
  constexpr std::ptrdiff_t kBlock = 8;
  while (end - begin >= kBlock) {
    std::uint64_t found = 0;
    for (std::ptrdiff_t i = 1; i <= kBlock; ++i) found |= static_cast<std::uint64_t>(end[-i] == token);
    if (found) break;
    end -= kBlock;
  }
  while (end > begin && end[-1] != token) --end;
  return end;
}

/// One behind the last occurrence of any of `tokens`, or 0.
template <typename Id>
std::uint64_t begin_behind_last(const Id* ids, std::uint64_t length, const std::vector<Token>& tokens) {
  std::uint64_t begin = 0;
  for (const Token token : tokens) {
    begin = static_cast<std::uint64_t>(behind_last(ids + begin, ids + length, token) - ids);
  }
  return begin;
}

/// Where an item's tokens lead from the root; those behind a complete item do not matter.
template <typename Id>
State walk(const TrieView& view, const Id* begin, const Id* end) {
  std::uint64_t used = 0;
  return view.walk(kRoot, begin, static_cast<std::uint64_t>(end - begin), &used);
}

/// Floating point numbers of one format, as bit patterns that are compared as integers.
template <typename Word>
struct Numbers {
  static constexpr Word kSign = static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));
  Word minus_infinity;

  bool is_nan(Word bits) const { return static_cast<Word>(bits | kSign) > minus_infinity; }
  /// Ascending with the number; what is none counts as -inf.
  Word key(Word bits) const {
    if (is_nan(bits)) bits = minus_infinity;
    return static_cast<Word>(bits & kSign ? ~bits : bits | kSign);
  }
};

template <typename Word>
std::uint64_t mask_rows(const AllowedRows& allowed, Token begin_token, const ScoreRows& rows) {
  const auto minus_infinity = static_cast<Word>(rows.minus_infinity), last_resort = static_cast<Word>(rows.last_resort);
  const auto highest = static_cast<Word>(rows.highest);
  const Numbers<Word> numbers{minus_infinity};
  const Word highest_key = numbers.key(highest), lowest_key = static_cast<Word>(~highest_key);
  std::uint64_t first_nan = allowed.verdicts.size();
  for (std::uint64_t row = 0; row < allowed.verdicts.size(); ++row) {
    const Word* scores = static_cast<const Word*>(rows.scores) + row * rows.width;
    Word* out = static_cast<Word*>(rows.out) + row * rows.width;
    const Verdict verdict = allowed.verdicts[row];
    if (is_free(verdict)) {
      std::memcpy(out, scores, rows.width * sizeof(Word));
      if (verdict == Verdict::kFreeNoBegin) out[begin_token] = minus_infinity;
      continue;
    }
    std::fill_n(out, rows.width, minus_infinity);
    const auto [begin, end] = allowed.spans[row];
    Word best = 0;
    bool has_nan = false;
    for (std::uint64_t i = begin; i < end; ++i) {
      const Word score = scores[allowed.tokens[i]], key = numbers.key(score);
      const bool is_nan = numbers.is_nan(score);
      best = std::max(best, key);
      has_nan = has_nan || is_nan;
      out[allowed.tokens[i]] = is_nan ? minus_infinity : key > highest_key ? highest : score;
    }
    if (has_nan && verdict == Verdict::kItem) first_nan = std::min(first_nan, row);
    if (best > lowest_key) continue;
    for (std::uint64_t i = begin; i < end; ++i) {  // forbidden by whoever wrote the scores
      const Token token = allowed.tokens[i];
      out[token] = numbers.key(scores[token]) == best ? last_resort : minus_infinity;
    }
  }
  return first_nan;
}

/// Whether `after`, written before an item, would be found again at a later place: inside the item or across its
/// beginning. An end token does not count: what ends with it is over.
bool stands_inside(const TrieView& view, const std::vector<Token>& after) {
  const std::size_t length = after.size();
  // longest[n]: of the proper beginnings of the first n tokens, the longest that they also end with.
  std::vector<std::size_t> longest(length + 1, 0);
  const auto next = [&](std::size_t matched, Token token) {
    while (matched == length || after[matched] != token) {
      if (matched == 0) return matched;
      matched = longest[matched];
    }
    return matched + 1;
  };
  for (std::size_t n = 1; n < length; ++n) longest[n + 1] = next(longest[n], after[n]);

  const auto is_foreign = [&](Token token) { return view.index_of(token) == view.num_tokens; };
  if (is_foreign(after.back())) return false;
  if (std::any_of(after.begin(), after.end(), is_foreign)) {  // only across the beginning
    for (std::size_t n = longest[length]; n > 0; n = longest[n]) {
      const std::vector<std::int64_t> rest(after.begin() + static_cast<std::ptrdiff_t>(n), after.end());
      std::uint64_t used = 0;
      if (view.walk(kRoot, rest.data(), rest.size(), &used) >= 0 && used == rest.size() &&
          after.back() != view.end_token) {
        return true;
      }
    }
    return false;
  }
  if (after.back() == view.end_token) return false;
  // Nodes are numbered level by level, so that what leads to one is known when it is reached.
  std::vector<std::size_t> matched(view.num_nodes, 0);
  if (view.num_nodes > 0) matched[0] = longest[length];
  std::uint64_t tokens_left = view.num_edges + view.num_run_tokens;  // a damaged trie may say more
  for (std::uint32_t node = 0; node < view.num_nodes; ++node) {
    const EdgeRange range = view.edges(node);
    for (std::uint32_t edge = range.begin; edge < range.end; ++edge) {
      std::size_t here = next(matched[node], view.token_at(view.edge_token_index(edge)));
      State state = view.follow(node, range, edge);
      while (here < length && state >= 0 && TrieView::remaining_of(state) > 0 && tokens_left > 0) {
        --tokens_left;
        const Token token = view.next_run_token(state);
        here = next(here, token);
        state = view.advance(state, token);
      }
      if (here == length) return true;
      if (state >= 0 && TrieView::target_of(state) < view.num_nodes) matched[TrieView::target_of(state)] = here;
    }
  }
  return false;
}

}  // namespace

bool AllowedRows::is_unconstrained() const {
  return std::all_of(verdicts.begin(), verdicts.end(), [](Verdict verdict) { return verdict == Verdict::kFree; });
}

bool AllowedRows::is_open() const {
  return first_closed() == verdicts.size() && std::none_of(verdicts.begin(), verdicts.end(), [](Verdict verdict) {
           return verdict == Verdict::kDead || verdict == Verdict::kEmptied;
         });
}

std::uint64_t AllowedRows::num_dead() const {
  return static_cast<std::uint64_t>(std::count(verdicts.begin(), verdicts.end(), Verdict::kDead));
}

std::uint64_t AllowedRows::first_closed() const {
  std::uint64_t row = 0;
  while (row < verdicts.size() && (is_free(verdicts[row]) || spans[row].first < spans[row].second)) ++row;
  return row;
}

HistoryReader::HistoryReader(std::vector<std::shared_ptr<const Constraint>> constraints, std::vector<Token> after,
                             OnDead on_dead)
    : constraints_(std::move(constraints)), after_(std::move(after)), on_dead_(on_dead) {
  const Trie* checked = nullptr;
  for (const auto& constraint : constraints_) {
    if (after_.empty() || constraint->trie().get() == checked) continue;
    checked = constraint->trie().get();
    if (!stands_inside(checked->view(), after_)) continue;
    std::string tokens;
    for (const Token token : after_) tokens += (tokens.empty() ? "" : ", ") + std::to_string(token);
    throw std::invalid_argument(
        "after=[" + tokens +
        "] also stands inside the catalog's sequences or across their beginning, so that it does not tell where a "
        "response begins: give more of the tokens that stand before it, or prompt_length");
  }
}

const Constraint& HistoryReader::constraint(const HistoryBatch& batch, std::uint64_t row) const {
  return *constraints_[entry_of(row, batch.rows, constraints_.size())];
}

HistoryReader HistoryReader::row(std::uint64_t row) const {
  if (constraints_.size() == 1) return *this;
  if (row >= constraints_.size()) {
    throw std::invalid_argument("batch_id=" + std::to_string(row) + ", item_filter has " +
                                std::to_string(constraints_.size()) + " entries");
  }
  return {{constraints_[row]}, after_, on_dead_};
}

template <typename Id>
Cursor HistoryReader::read_triggered(const Constraint& constraint, const Id* ids, std::uint64_t length) const {
  const Token begin_token = constraint.options().begin_token;
  const Id* const end = ids + length;
  // Nothing before the last end of turn matters.
  const Id* const turn = ids + begin_behind_last(ids, length, constraint.options().eos_tokens);
  const Id* const last = behind_last(turn, end, begin_token);
  Cursor cursor = constraint.start();
  if (last == turn) return cursor;
  cursor.state = walk(constraint.view(), last, end);

  // Where something was given before may matter to what follows, read that too. Behind an item it only matters once as
  // many were begun as there are; inside one, only what begins with the same tokens lies below.
  const bool is_behind = constraint.view().is_leaf(cursor.state);
  const bool is_unique = constraint.options().unique != Unique::kNo;
  const auto may_exhaust = [&] {
    const auto num_allowed = static_cast<std::ptrdiff_t>(constraint.num_allowed());
    return end - turn >= num_allowed && std::count(turn, end, begin_token) >= num_allowed;
  };
  if (is_unique && (!is_behind || may_exhaust())) {
    const State state = cursor.state;
    for (const Id* at = turn; (at = std::find(at, last - 1, begin_token)) != last - 1;) {
      ++at;
      if (!is_behind && (last - at < end - last || !std::equal(last, end, at))) continue;
      cursor.state = walk(constraint.view(), at, last);
      constraint.complete(&cursor);
    }
    cursor.state = state;
  }
  constraint.complete(&cursor);
  return cursor;
}

template <typename Id>
std::vector<std::uint64_t> HistoryReader::response_begins(const HistoryBatch& batch, const Id* all) const {
  std::vector<std::uint64_t> begins(batch.rows);
  std::uint64_t last = 0;
  for (std::uint64_t row = 0; row < batch.rows; ++row) {
    const Id* const ids = all + row * batch.length;
    if (!after_.empty()) {
      const Id* const end = ids + batch.length;
      const Id* const found = std::find_end(ids, end, after_.begin(), after_.end());
      if (found == end) {
        throw std::invalid_argument("input_ids[" + std::to_string(row) + "] does not hold the token sequence `after`");
      }
      begins[row] = static_cast<std::uint64_t>(found - ids) + after_.size();
      last = std::max(last, begins[row]);
      continue;
    }
    const std::int64_t begin = batch.prompt_lengths[entry_of(row, batch.rows, batch.num_prompt_lengths)];
    if (begin < 0 || static_cast<std::uint64_t>(begin) > batch.length) {
      throw std::invalid_argument("prompt_length=" + std::to_string(begin) + " of row " + std::to_string(row) +
                                  " is outside [0, " + std::to_string(batch.length) + "], the length of input_ids");
    }
    begins[row] = static_cast<std::uint64_t>(begin);
  }
  // All prompts are as wide as the widest: up to where that ends, one token over and over that no item begins with is
  // padding. Behind that it is a response that has left the trie.
  for (std::uint64_t row = 0; row < batch.rows && !after_.empty(); ++row) {
    const Id* const begin = all + row * batch.length + begins[row];
    const Id* const end = all + row * batch.length + last;
    if (begin < end && constraint(batch, row).view().advance(kRoot, narrowed(*begin)) == kOffTrie &&
        std::all_of(begin, end, [begin](Id id) { return id == *begin; })) {
      begins[row] = last;
    }
  }
  return begins;
}

template <typename Id>
Cursor HistoryReader::read(const HistoryBatch& batch, const Id* ids, std::uint64_t row, std::uint64_t begin) const {
  const Constraint& rules = constraint(batch, row);
  Cursor cursor = rules.start();
  for (std::uint64_t at = begin; at < batch.length && !cursor.finished; ++at) {
    rules.advance(&cursor, narrowed(ids[row * batch.length + at]));
  }
  return cursor;
}

AllowedRows HistoryReader::allowed(const HistoryBatch& batch, const Poll& poll) const {
  return batch.narrow_ids != nullptr ? allowed_after(batch, batch.narrow_ids, poll)
                                     : allowed_after(batch, batch.ids, poll);
}

template <typename Id>
AllowedRows HistoryReader::allowed_after(const HistoryBatch& batch, const Id* ids, const Poll& poll) const {
  const auto check_rows = [&](const char* what, std::uint64_t count) {
    if (count > batch.rows || (count > 0 && batch.rows % count != 0)) {
      throw std::invalid_argument(std::string(what) + " has " + std::to_string(count) + " entries, input_ids has " +
                                  std::to_string(batch.rows) + " rows");
    }
  };
  if (batch.rows == 0) return {};
  check_rows("item_filter", constraints_.size());
  check_rows("prompt_length", batch.num_prompt_lengths);

  AllowedRows rows;
  rows.verdicts.reserve(batch.rows);
  rows.spans.reserve(batch.rows);
  Cursor previous;
  const bool is_triggered = constraints_.front()->is_triggered();
  const std::vector<std::uint64_t> begins = is_triggered ? std::vector<std::uint64_t>() : response_begins(batch, ids);
  StepPoll polled(poll);
  for (std::uint64_t row = 0; row < batch.rows; ++row) {
    const std::uint64_t listed = rows.tokens.size();
    Cursor cursor = is_triggered ? read_triggered(constraint(batch, row), ids + row * batch.length, batch.length)
                                 : read(batch, ids, row, begins[row]);
    // Beams start out in the same place: list the tokens of a wide node once.
    const bool same = row > 0 && constraints_.size() == 1 && cursor.state == previous.state &&
                      cursor.finished == previous.finished && cursor.spent.empty() && previous.spent.empty();
    if (same) {
      rows.verdicts.push_back(rows.verdicts.back());
      rows.spans.push_back(rows.spans.back());
    } else {
      const std::uint64_t begin = rows.tokens.size();
      const Verdict verdict = constraint(batch, row).allowed(cursor, &rows.tokens);
      if (on_dead_ == OnDead::kNothing && (verdict == Verdict::kDead || verdict == Verdict::kEmptied)) {
        rows.tokens.resize(begin);
      }
      rows.verdicts.push_back(verdict);
      rows.spans.emplace_back(begin, rows.tokens.size());
    }
    if (rows.verdicts.back() == Verdict::kDead) ++constraint(batch, row).trie()->closed_rows()->dead;
    if (rows.verdicts.back() == Verdict::kEmptied) ++constraint(batch, row).trie()->closed_rows()->emptied;
    previous = std::move(cursor);
    polled(1 + batch.length + rows.tokens.size() - listed);
  }
  return rows;
}

std::uint64_t mask_scores(const AllowedRows& allowed, Token begin_token, const ScoreRows& rows) {
  switch (rows.itemsize) {
    case 2:
      return mask_rows<std::uint16_t>(allowed, begin_token, rows);
    case 4:
      return mask_rows<std::uint32_t>(allowed, begin_token, rows);
    case 8:
      return mask_rows<std::uint64_t>(allowed, begin_token, rows);
    default:
      throw std::invalid_argument("itemsize=" + std::to_string(rows.itemsize) + ", expected 2, 4 or 8");
  }
}

}  // namespace gentrie
