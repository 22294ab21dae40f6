#ifndef GENTRIE_BEAM_SEARCH_H_
#define GENTRIE_BEAM_SEARCH_H_

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "gentrie/filter.h"
#include "gentrie/trie.h"
#include "gentrie/types.h"

namespace gentrie {

/// When a request stops that has found as many items as it wants, as in `generate` of transformers.
enum class EarlyStopping { kFalse, kTrue, kNever };

struct BeamRules {
  std::uint32_t beam_width = 10;  ///< live beams, and items found at most; all groups together
  std::uint32_t num_groups = 1;   ///< divides beam_width
  double diversity_penalty = 0;   ///< of each token that beams of earlier groups have just taken
  bool over_vocabulary = false;   ///< log-probabilities over all tokens rather than over those that may follow
  double length_penalty = 1;
  EarlyStopping early_stopping = EarlyStopping::kFalse;
  std::uint64_t max_length = 0;  ///< tokens at most; longer sequences are not found
};

/// What the scores of items add to those of the tokens that lead to them: a token scores `model_weight * log p` plus
/// this; nothing where it is the only choice.
struct ItemTerm {
  enum class Kind {
    kShare,  ///< (1 - model_weight) * log of the token's share of the scores below all that may follow
    kBest,   ///< how much lower the best score below it is than the best below all that may follow
  };
  Kind kind = Kind::kShare;
  double model_weight = 1;
  double start = 0;                 ///< added to the first token
  std::vector<double> leaf_scores;  ///< [num_leaves]
};

/// D3 (EMNLP 2024, arXiv 2406.14900): the scores of items that share a sequence are added up.
/// `scores`: [count], of item id i at i. \throws std::invalid_argument if an item id is not below `count`
ItemTerm share_term(const TrieView& view, const double* scores, std::uint64_t count, double alpha,
                    const Poll& poll = {});
/// PAG (SIGIR 2024, arXiv 2404.14600, eq. 6), with the maximum over all items that `filter` (nullptr: none) allows.
ItemTerm best_term(const TrieView& view, const ItemFilter* filter, const double* scores, std::uint64_t count,
                   const Poll& poll = {});

/// What the model has to be asked next, N rows.
struct BeamRows {
  std::vector<std::int64_t> handles;   ///< [N] names by which later rows refer to them, never used twice
  std::vector<std::int64_t> requests;  ///< [N]
  std::vector<std::int64_t> parents;   ///< [N] handle of the row that it continues; -1: the prompt
  std::vector<State> states;           ///< [N] where the row's next token is chosen, forced tokens fed with it left out
  std::vector<std::int64_t> tokens;    ///< row i feeds tokens[indptr[i]:indptr[i + 1]] behind its parent
  std::vector<std::int64_t> indptr;    ///< [N + 1]
  std::vector<std::int64_t> logit_counts;  ///< [N] rows of logits wanted, behind its last tokens
};

/// Logits of the rows asked for.
struct BeamLogits {
  const void* data = nullptr;  ///< [num_rows, width], float or double
  bool is_double = false;
  std::uint64_t width = 0;
  std::int64_t row_stride = 0;       ///< in elements
  bool is_narrow = false;            ///< columns are those of the catalog's vocabulary alone, not of all tokens
  const double* log_sums = nullptr;  ///< [num_rows] over the whole vocabulary; nullptr: to be computed where needed
};

/// The live beams of the requests that were stepped.
struct BeamStep {
  std::vector<std::int64_t> requests, parents;  ///< request, and the handle of the row that it continues (-1: prompt)
  std::vector<std::int64_t> tokens;             ///< chosen there; -1: none, the beam is where that row ends
  std::vector<State> states;
  std::vector<std::vector<Token>> forced;  ///< tokens that follow without a choice so far
  std::vector<std::int64_t> finished;      ///< requests
};

/// A sequence that a request found.
struct BeamItem {
  std::uint32_t leaf;
  double score;  ///< log-probability over length ** length_penalty
  std::vector<Token> tokens;
  std::vector<double> token_scores;
  std::uint64_t num_forced;  ///< tokens that were the only choice
};

/// The token-synchronous beam search of transformers over one catalog, for requests that join and leave at any time.
/// It says what a model has to be asked, takes the answers, and knows no model. One thread at a time.
///
/// At each depth the best `2 * width` continuations of all live beams of a group compete; the first `width` of them may
/// finish, and the best that do not finish live on.
class BeamSearch {
 public:
  explicit BeamSearch(std::shared_ptr<const Trie> trie);
  ~BeamSearch();
  BeamSearch(const BeamSearch&) = delete;
  BeamSearch& operator=(const BeamSearch&) = delete;

  const Trie& trie() const { return *trie_; }
  bool has(std::int64_t request) const { return serials_.count(request) != 0; }
  /// \throws std::invalid_argument for a request that is there already
  void add(std::int64_t request, const BeamRules& rules, std::shared_ptr<const ItemFilter> filter = nullptr,
           std::shared_ptr<const ItemTerm> term = nullptr);
  /// \throws std::invalid_argument for an unknown request, as do the two below
  void drop(std::int64_t request);
  bool is_finished(std::int64_t request) const;
  /// What a finished request found, best first, each sequence once; it leaves. \throws std::invalid_argument
  std::vector<BeamItem> take(std::int64_t request, std::uint64_t limit, std::shared_ptr<const ItemFilter>* filter);

  /// What the model has to be asked now; the same until step(). Where few beams ask, forced tokens are read ahead, up
  /// to `room` tokens in all.
  const BeamRows& rows(std::uint64_t room);
  std::uint64_t num_logits() const { return place_indptr_.size() - 1; }
  /// Whether any row that is asked for wants log-probabilities over the whole vocabulary.
  bool needs_log_sums() const;
  /// The tokens whose scores are wanted of each row of logits: place_tokens()[place_indptr()[i]:place_indptr()[i + 1]].
  const std::vector<Token>& place_tokens() const { return place_tokens_; }
  const std::vector<std::int64_t>& place_indptr() const { return place_indptr_; }

  /// Takes the logits of the rows asked for. \throws std::invalid_argument, before anything has changed, where they are
  /// not numbers
  BeamStep step(const BeamLogits& logits, const Poll& poll = {});
  /// The same of what place_tokens() lists alone: logits, and where needs_log_sums() the log-sums [num_logits].
  BeamStep step_places(const double* logits, const double* log_sums);

  /// Rows that live beams continue, ascending.
  std::vector<std::int64_t> handles_in_use() const;

 private:
  class Request;
  struct Asked;

  Request& find(std::int64_t request) const;
  BeamStep apply(std::vector<double>* values, const double* log_sums);

  std::shared_ptr<const Trie> trie_;
  std::map<std::uint64_t, std::unique_ptr<Request>> running_;  ///< by serial number: in the order in which they joined
  std::unordered_map<std::int64_t, std::uint64_t> serials_;
  std::uint64_t next_serial_ = 0;
  std::int64_t next_handle_ = 0;

  bool is_asked_ = false;
  BeamRows rows_;
  std::vector<Asked> asked_;
  std::vector<Token> place_tokens_;
  std::vector<std::int64_t> place_indptr_{0};
};

}  // namespace gentrie

#endif  // GENTRIE_BEAM_SEARCH_H_
