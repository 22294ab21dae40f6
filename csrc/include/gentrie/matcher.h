#ifndef GENTRIE_MATCHER_H_
#define GENTRIE_MATCHER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gentrie/constraint.h"

namespace gentrie {

/// One history, moved token by token, with undo: what a serving engine keeps for a request. The trie behind it is
/// shared; a matcher belongs to one thread at a time.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const Constraint> constraint);

  const Constraint& constraint() const { return *constraint_; }
  const Cursor& cursor() const { return cursor_; }
  std::uint64_t num_accepted() const { return undo_.size(); }

  /// Takes `token` if it is allowed; otherwise changes nothing and returns false.
  bool accept(Token token);
  /// Tokens, from the first on, that would be accepted.
  std::uint64_t validate(const Token* tokens, std::uint64_t count, const Poll& poll = {}) const;
  /// Takes back the last `count` tokens. \throws std::invalid_argument if fewer were accepted.
  void rollback(std::uint64_t count);
  void reset();
  /// Whether the response (triggered: the turn) has ended.
  bool is_terminated() const;
  Verdict allowed(std::vector<Token>* tokens) const;

 private:
  struct Undo {
    State state;
    bool finished;
    bool at_turn_end;
    std::uint32_t spent_leaf;                         ///< the leaf this token spent, or kNoLeaf
    std::shared_ptr<const std::vector<Spent>> spent;  ///< what an end of turn cleared
  };

  std::shared_ptr<const Constraint> constraint_;
  Cursor cursor_;
  bool at_turn_end_ = false;
  std::vector<Undo> undo_;
};

/// Fills one row of a token bitmask (1 = allowed) of `num_words` 32-bit words. Returns whether it forbids anything.
/// \throws std::invalid_argument for fewer than ceil(vocab_size / 32) words of the model's vocabulary
bool fill_bitmask(const Matcher& matcher, std::int32_t* words, std::uint64_t num_words);

/// Fills row rows[i] of a bitmask for matchers[i], row i where `rows` is null; rows are `row_stride` words apart.
/// \throws std::invalid_argument before anything is written, for rows that are too narrow or named twice
void fill_bitmasks(const std::vector<const Matcher*>& matchers, std::int32_t* bitmask, std::uint64_t num_words,
                   std::int64_t row_stride, const std::int64_t* rows, int num_threads, const Poll& poll = {});

}  // namespace gentrie

#endif  // GENTRIE_MATCHER_H_
