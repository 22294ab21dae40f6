#include "gentrie/matcher.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "parallel.h"
#include "poll.h"

namespace gentrie {

Matcher::Matcher(std::shared_ptr<const Constraint> constraint)
    : constraint_(std::move(constraint)), cursor_(constraint_->start()) {}

bool Matcher::accept(Token token) {
  if (!constraint_->allows(cursor_, token)) return false;
  Undo undo{cursor_.state, cursor_.finished, at_turn_end_, kNoLeaf, nullptr};
  const bool ends_turn = constraint_->is_triggered() && cursor_.state == kFreeText && constraint_->is_eos(token);
  if (ends_turn && !cursor_.spent.empty()) {
    undo.spent = std::make_shared<const std::vector<Spent>>(cursor_.spent);
  }
  undo.spent_leaf = constraint_->advance(&cursor_, token);
  at_turn_end_ = ends_turn;
  undo_.push_back(std::move(undo));
  return true;
}

std::uint64_t Matcher::validate(const Token* tokens, std::uint64_t count, const Poll& poll) const {
  Cursor ahead = cursor_;
  StepPoll polled(poll);
  for (std::uint64_t i = 0; i < count; ++i, polled()) {
    if (!constraint_->allows(ahead, tokens[i])) return i;
    constraint_->advance(&ahead, tokens[i]);
  }
  return count;
}

void Matcher::rollback(std::uint64_t count) {
  if (count > undo_.size()) {
    throw std::invalid_argument("num_tokens=" + std::to_string(count) + " is more than the " +
                                std::to_string(undo_.size()) + " accepted");
  }
  for (; count > 0; --count) {
    const Undo& undo = undo_.back();
    cursor_.state = undo.state;
    cursor_.finished = undo.finished;
    at_turn_end_ = undo.at_turn_end;
    if (undo.spent) cursor_.spent = *undo.spent;
    if (undo.spent_leaf != kNoLeaf) {
      const auto at = std::find_if(cursor_.spent.begin(), cursor_.spent.end(),
                                   [&](const Spent& spent) { return spent.leaf == undo.spent_leaf; });
      if (--at->times == 0) cursor_.spent.erase(at);
    }
    undo_.pop_back();
  }
}

void Matcher::reset() {
  cursor_ = constraint_->start();
  at_turn_end_ = false;
  undo_.clear();
}

Verdict Matcher::allowed(std::vector<Token>* tokens) const {
  const Verdict verdict = constraint_->allowed(cursor_, tokens);
  if (verdict == Verdict::kEmptied) ++constraint_->trie()->closed_rows()->emptied;
  return verdict;
}

bool Matcher::is_terminated() const { return cursor_.finished || at_turn_end_; }

namespace {

void check_width(const Matcher& matcher, std::uint64_t num_words) {
  const Constraint& constraint = matcher.constraint();
  const auto vocab_size = std::max<std::int64_t>(constraint.view().vocab_size, constraint.options().vocab_size);
  if (num_words * 32 < static_cast<std::uint64_t>(vocab_size)) {
    throw std::invalid_argument("bitmask has " + std::to_string(num_words) +
                                " words a row, fewer than vocab_size=" + std::to_string(vocab_size) + " needs");
  }
}

void check_each_row_once(const std::int64_t* rows, std::uint64_t count) {
  std::vector<std::int64_t> sorted(rows, rows + count);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) throw std::invalid_argument("indices name row " + std::to_string(*twice) + " twice");
}

}  // namespace

bool fill_bitmask(const Matcher& matcher, std::int32_t* words, std::uint64_t num_words) {
  check_width(matcher, num_words);
  std::vector<Token> tokens;
  const Verdict verdict = matcher.allowed(&tokens);
  const bool is_free = verdict == Verdict::kFree || verdict == Verdict::kFreeNoBegin;
  std::fill_n(words, num_words, is_free ? -1 : 0);
  if (verdict == Verdict::kFreeNoBegin) tokens.assign(1, matcher.constraint().options().begin_token);
  for (const Token token : tokens) {
    const auto t = static_cast<std::uint32_t>(token);
    words[t >> 5] ^= static_cast<std::int32_t>(std::uint32_t{1} << (t & 31));
  }
  return verdict != Verdict::kFree;
}

void fill_bitmasks(const std::vector<const Matcher*>& matchers, std::int32_t* bitmask, std::uint64_t num_words,
                   std::int64_t row_stride, const std::int64_t* rows, int num_threads, const Poll& poll) {
  for (const Matcher* matcher : matchers) check_width(*matcher, num_words);
  if (rows != nullptr) check_each_row_once(rows, matchers.size());
  parallel_for(
      matchers.size(), num_threads, 1,
      [&](std::uint64_t i, std::uint64_t) {
        const std::int64_t row = rows == nullptr ? static_cast<std::int64_t>(i) : rows[i];
        fill_bitmask(*matchers[i], bitmask + row * row_stride, num_words);
      },
      as_tick(poll));
}

}  // namespace gentrie
