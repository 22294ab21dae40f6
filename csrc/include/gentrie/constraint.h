#ifndef GENTRIE_CONSTRAINT_H_
#define GENTRIE_CONSTRAINT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gentrie/filter.h"
#include "gentrie/trie.h"

namespace gentrie {

/// Whether what was given in a turn may be given again.
enum class Unique {
  kNo,
  kSequence,  ///< each sequence once
  kItem,      ///< each sequence as often as the catalog lists it
};

struct ConstraintOptions {
  /// Free text until this token, an item until its last token, free text again; kNoToken: one item from the start.
  Token begin_token = kNoToken;
  std::vector<Token> eos_tokens;  ///< each ends a turn (triggered) or the response
  Unique unique = Unique::kNo;
  /// Tokens that the model has, where it has more than the catalog's vocabulary; 0: not known, any may stand in free
  /// text.
  std::int64_t vocab_size = 0;
};

/// What a history may go on with.
enum class Verdict : std::uint8_t {
  kFree,         ///< any token
  kFreeNoBegin,  ///< any token but the begin token: no item is left to give
  kItem,         ///< the listed tokens of an item
  kFinished,     ///< the item is complete: the response may end
  kDead,         ///< the history has left the trie
  kEmptied,      ///< filter and earlier items leave nothing below this place
};

/// A sequence given since the last end of turn.
struct Spent {
  std::uint32_t leaf;
  std::uint32_t times;
};

inline constexpr std::uint32_t kNoLeaf = 0xFFFFFFFF;

/// Where one history stands.
struct Cursor {
  State state = kRoot;
  bool finished = false;     ///< the response has ended
  std::vector<Spent> spent;  ///< ascending by leaf; kept up only where unique is asked for
};

/// The rules for one history: a trie, the control tokens, a filter. Immutable; a Cursor is moved by one thread at a
/// time.
class Constraint {
 public:
  /// \throws std::invalid_argument for control tokens outside the model's vocabulary or inside the catalog's sequences.
  Constraint(std::shared_ptr<const Trie> trie, ConstraintOptions options,
             std::shared_ptr<const ItemFilter> filter = nullptr);

  const std::shared_ptr<const Trie>& trie() const { return trie_; }
  const TrieView& view() const { return trie_->view(); }
  const ConstraintOptions& options() const { return options_; }
  bool is_triggered() const { return options_.begin_token != kNoToken; }
  bool is_eos(Token token) const;

  /// Sequences that may be given at all.
  std::uint32_t num_allowed() const { return num_left(Cursor{}, view().leaves_below(kRoot)); }

  Cursor start() const;
  /// Appends the tokens that may follow to `tokens` (none where the verdict is free or dead).
  Verdict allowed(const Cursor& cursor, std::vector<Token>* tokens) const;
  /// Whether `token` may follow.
  bool allows(const Cursor& cursor, Token token) const;
  /// Takes `token`, allowed or not: what a history holds is not refused but may lead off the trie. Returns the leaf
  /// that was spent, or kNoLeaf.
  std::uint32_t advance(Cursor* cursor, Token token) const;
  /// What follows from having reached the end of an item, if the cursor has. Returns the leaf that was spent, or
  /// kNoLeaf.
  std::uint32_t complete(Cursor* cursor) const;
  /// Tokens that are the only choice one after the other, up to a branch or the item's end.
  void forced(const Cursor& cursor, std::vector<Token>* tokens) const;

 private:
  bool is_complete(const Cursor& cursor) const { return view().is_leaf(cursor.state); }
  void spend(Cursor* cursor, std::uint32_t leaf) const;
  /// Sequences below that filter and earlier items leave.
  std::uint32_t num_left(const Cursor& cursor, LeafRange range) const;
  bool is_used_up(const Spent& spent) const;
  std::uint32_t num_used_up(const Cursor& cursor, LeafRange range) const;
  void append_open_edges(const Cursor& cursor, std::uint32_t node, std::vector<Token>* tokens) const;

  std::shared_ptr<const Trie> trie_;
  ConstraintOptions options_;
  std::shared_ptr<const ItemFilter> filter_;
};

}  // namespace gentrie

#endif  // GENTRIE_CONSTRAINT_H_
