#ifndef GENTRIE_HISTORY_H_
#define GENTRIE_HISTORY_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gentrie/constraint.h"

namespace gentrie {

/// Token ids [rows, length], not owned, row after row: 64 bits each, or 32, as engines hold them.
struct HistoryBatch {
  const std::int64_t* ids = nullptr;
  const std::int32_t* narrow_ids = nullptr;  ///< in the place of `ids`
  std::uint64_t rows = 0;
  std::uint64_t length = 0;
  /// Where the response begins; null when triggered or where a token sequence says it. One entry may serve several
  /// adjacent rows (beams): entry i * num_prompt_lengths / rows is row i's.
  const std::int64_t* prompt_lengths = nullptr;
  std::uint64_t num_prompt_lengths = 0;
};

/// What each row of a batch may go on with; rows in the same place share their tokens.
struct AllowedRows {
  std::vector<Verdict> verdicts;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> spans;  ///< into tokens
  std::vector<Token> tokens;

  bool is_unconstrained() const;   ///< anything may follow every row
  bool is_open() const;            ///< no row has left the trie, and something may follow each
  std::uint64_t num_dead() const;  ///< rows that have left the trie
  /// The first constrained row that nothing may follow, or the number of rows.
  std::uint64_t first_closed() const;
};

/// What a row that has left the trie, or that filter and earlier items have emptied, may go on with.
enum class OnDead { kEos, kNothing };

/// Reads whole histories, as `generate` hands them over at every step. Keeps nothing from one call to the next.
class HistoryReader {
 public:
  /// One constraint for all rows, or one for every rows / size adjacent ones. `after`: where not empty, the response
  /// begins behind its last occurrence, or, where padding follows that, where the widest prompt ends.
  /// \throws std::invalid_argument if `after` also stands inside the sequences of a trie
  HistoryReader(std::vector<std::shared_ptr<const Constraint>> constraints, std::vector<Token> after, OnDead on_dead);

  std::uint64_t num_constraints() const { return constraints_.size(); }
  /// The reader of one prompt. \throws std::invalid_argument if there are fewer constraints
  HistoryReader row(std::uint64_t row) const;

  /// \throws std::invalid_argument naming the row: no occurrence of `after`, a prompt length beyond the history, a
  ///   number of rows that does not fit the constraints.
  AllowedRows allowed(const HistoryBatch& batch, const Poll& poll = {}) const;

 private:
  const Constraint& constraint(const HistoryBatch& batch, std::uint64_t row) const;
  template <typename Id>
  AllowedRows allowed_after(const HistoryBatch& batch, const Id* ids, const Poll& poll) const;
  template <typename Id>
  Cursor read_triggered(const Constraint& constraint, const Id* ids, std::uint64_t length) const;
  template <typename Id>
  std::vector<std::uint64_t> response_begins(const HistoryBatch& batch, const Id* ids) const;
  template <typename Id>
  Cursor read(const HistoryBatch& batch, const Id* ids, std::uint64_t row, std::uint64_t begin) const;

  std::vector<std::shared_ptr<const Constraint>> constraints_;
  std::vector<Token> after_;
  OnDead on_dead_;
};

/// Scores [rows, width] of 2, 4 or 8-byte floating point values, row after row.
struct ScoreRows {
  const void* scores = nullptr;
  void* out = nullptr;
  std::uint64_t width = 0;
  std::uint32_t itemsize = 4;
  std::uint64_t minus_infinity = 0;  ///< its bit pattern in this type
  std::uint64_t last_resort = 0;     ///< bit pattern of what the best of forbidden tokens gets
  std::uint64_t highest = 0;         ///< bit pattern of the highest score there may be; its negative and less forbids
};

/// Writes every element of `out`: the score where the token is allowed, -inf elsewhere. `out` must not overlap.
///
/// Of allowed tokens, scores above `highest` become that, and what is not a number becomes -inf. Where no allowed token
/// scores above -`highest`, they are forbidden by whoever wrote the scores: the best of them get `last_resort` and the
/// others -inf, since a row of -inf alone is no constraint.
/// \return the first row inside an item where the score of an allowed token is not a number, or the number of rows
std::uint64_t mask_scores(const AllowedRows& allowed, Token begin_token, const ScoreRows& rows);

}  // namespace gentrie

#endif  // GENTRIE_HISTORY_H_
