#ifndef GENTRIE_SORTED_SEQUENCES_H_
#define GENTRIE_SORTED_SEQUENCES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gentrie/builder.h"

namespace gentrie {

/// What the layout is made from: the distinct sequences in lexicographic order, as rows of the source.
///
/// Tokens are seen through the catalog's own vocabulary: index i stands for the i-th smallest distinct token id.
class SortedSequences {
 public:
  /// Called with the share of the work done, 0 to 1; may throw.
  using Tick = std::function<void(double)>;

  SortedSequences(const SequenceSource& source, const BuildOptions& options, int num_threads, const Tick& tick);

  std::uint32_t num_leaves() const { return static_cast<std::uint32_t>(rows_.size()); }
  const std::vector<Token>& vocabulary() const { return vocabulary_; }
  /// Tokens that leaf i shares with leaf i - 1; entry 0 is unused.
  const std::vector<std::uint32_t>& lcp() const { return lcp_; }
  /// Item entries of leaf i: [item_indptr[i], item_indptr[i + 1]).
  const std::vector<std::uint32_t>& item_indptr() const { return item_indptr_; }
  const std::vector<std::int64_t>& item_ids() const { return item_ids_; }

  /// Tokens of a leaf's sequence, the end token included.
  std::uint64_t length(std::uint32_t leaf) const { return row_length(rows_[leaf]); }
  /// Vocabulary index of a leaf's token at `position`.
  std::uint32_t index_at(std::uint32_t leaf, std::uint64_t position) const {
    return row_index_at(rows_[leaf], position);
  }

 private:
  struct Entry {
    std::uint64_t key;  ///< the first tokens after the common prefix, so that most comparisons need nothing else
    std::uint32_t row;
  };

  void check_shape() const;
  void validate(const Tick& tick);
  std::string complaint(std::uint64_t row) const;  ///< why a row is refused; empty if it is not
  void index_vocabulary();
  void measure_common_prefix();
  std::vector<Entry> sorted_entries(const Tick& tick);
  void collect_leaves(std::vector<Entry> entries, const Tick& tick);

  std::uint64_t key_of(std::uint64_t row) const;
  /// Tokens shared by two rows whose keys are equal.
  std::uint64_t shared_beyond_key(std::uint64_t a, std::uint64_t b) const;
  bool less(const Entry& a, const Entry& b) const;

  std::uint64_t row_begin(std::uint64_t row) const {
    return source_.indptr ? static_cast<std::uint64_t>(source_.indptr[row]) : row * source_.length;
  }
  std::uint64_t row_tokens(std::uint64_t row) const {  // without the end token
    return source_.indptr ? static_cast<std::uint64_t>(source_.indptr[row + 1] - source_.indptr[row]) : source_.length;
  }
  std::uint64_t row_length(std::uint64_t row) const { return row_tokens(row) + (has_end_ ? 1 : 0); }
  std::int64_t value(std::uint64_t at) const {
    return source_.value_bytes == 4 ? static_cast<const std::int32_t*>(source_.values)[at]
                                    : static_cast<const std::int64_t*>(source_.values)[at];
  }
  std::uint32_t row_index_at(std::uint64_t row, std::uint64_t position) const {
    return position < row_tokens(row) ? index_of(value(row_begin(row) + position)) : end_index_;
  }
  std::uint32_t index_of(std::int64_t token) const {
    const std::uint64_t word = static_cast<std::uint64_t>(token) >> 6;
    const std::uint64_t below = seen_[word] & ((std::uint64_t{1} << (token & 63)) - 1);
    return seen_rank_[word] + static_cast<std::uint32_t>(__builtin_popcountll(below));
  }
  std::int64_t item_id(std::uint64_t row) const {
    return source_.item_ids ? source_.item_ids[row] : static_cast<std::int64_t>(row);
  }

  SequenceSource source_;
  std::int64_t vocab_size_;
  std::int64_t end_token_;
  bool has_end_;
  int num_threads_;

  std::vector<std::uint64_t> seen_;       ///< bitmap of the tokens in use
  std::vector<std::uint32_t> seen_rank_;  ///< bits set before each word of it
  std::uint32_t end_index_ = 0;
  std::uint64_t common_prefix_ = 0;  ///< tokens that all rows share
  std::uint32_t key_bits_ = 0;       ///< bits a token takes in a key
  std::uint32_t key_tokens_ = 0;     ///< tokens in a key

  std::vector<Token> vocabulary_;
  std::vector<std::uint32_t> rows_;
  std::vector<std::uint32_t> lcp_;
  std::vector<std::uint32_t> item_indptr_;
  std::vector<std::int64_t> item_ids_;
};

}  // namespace gentrie

#endif  // GENTRIE_SORTED_SEQUENCES_H_
