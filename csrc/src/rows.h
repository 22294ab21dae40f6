#ifndef GENTRIE_ROWS_H_
#define GENTRIE_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <string>

#include "gentrie/builder.h"
#include "gentrie/view.h"

namespace gentrie {

/// The rows of a source whose values have type T, each with the end token behind it where there is one.
template <typename T>
class Rows {
 public:
  Rows(const SequenceSource& source, const BuildOptions& options)
      : source_(source),
        values_(static_cast<const T*>(source.values)),
        vocab_size_(options.vocab_size),
        end_token_(options.end_token_id),
        has_end_(options.end_token_id != kNoToken) {}

  const T* begin(std::uint64_t row) const {
    return values_ + (source_.indptr ? static_cast<std::uint64_t>(source_.indptr[row]) : row * source_.length);
  }
  /// Tokens of a row, the end token not counted.
  std::uint64_t num_tokens(std::uint64_t row) const {
    return source_.indptr ? static_cast<std::uint64_t>(source_.indptr[row + 1] - source_.indptr[row]) : source_.length;
  }
  bool has_end() const { return has_end_; }
  std::int64_t end_token() const { return end_token_; }
  std::uint64_t length(std::uint64_t row) const { return num_tokens(row) + (has_end_ ? 1 : 0); }
  std::int64_t item_id(std::uint64_t row) const {
    return source_.item_ids ? source_.item_ids[row] : source_.first_item_id + static_cast<std::int64_t>(row);
  }
  GENTRIE_PREFETCH void prefetch(std::uint64_t row) const { __builtin_prefetch(begin(row)); }

  /// Tokens that two rows share, the end token included.
  std::uint64_t shared(std::uint64_t a, std::uint64_t b) const {
    const std::uint64_t a_tokens = num_tokens(a), b_tokens = num_tokens(b), limit = std::min(a_tokens, b_tokens);
    const T *const a_begin = begin(a), *const b_begin = begin(b);
    std::uint64_t i = 0;
    while (i < limit && a_begin[i] == b_begin[i]) ++i;
    return i == a_tokens && i == b_tokens ? length(a) : i;
  }

  bool is_sound(std::int64_t token) const {
    return token >= 0 && token < vocab_size_ && !(has_end_ && token == end_token_);
  }
  bool has_sound_length(std::uint64_t row) const {
    return num_tokens(row) > 0 && length(row) <= TrieView::kMaxSequenceLength;
  }

  std::string name(std::uint64_t row) const { return source_.name + "[" + std::to_string(row) + "]"; }

  /// Why a row is refused that is empty, too long, or holds a token that is not sound.
  std::string complaint(std::uint64_t row) const {
    const std::uint64_t count = num_tokens(row);
    if (count == 0) return name(row) + " is empty";
    if (!has_sound_length(row)) {
      return name(row) + " has " + std::to_string(count) + " tokens, more than the limit of " +
             std::to_string(TrieView::kMaxSequenceLength);
    }
    const T* const tokens = begin(row);
    const T* const bad = std::find_if(tokens, tokens + count, [this](T token) { return !is_sound(token); });
    const std::string token = std::to_string(*bad), position = std::to_string(bad - tokens);
    return *bad < 0 || *bad >= vocab_size_
               ? name(row) + ": token " + token + " at position " + position +
                     " is outside [0, vocab_size=" + std::to_string(vocab_size_) + ")"
               : name(row) + ": end_token_id=" + token + " stands inside the sequence, at position " + position +
                     " of " + std::to_string(count);
  }

 private:
  const SequenceSource& source_;
  const T* values_;
  std::int64_t vocab_size_;
  std::int64_t end_token_;
  bool has_end_;
};

}  // namespace gentrie

#endif  // GENTRIE_ROWS_H_
