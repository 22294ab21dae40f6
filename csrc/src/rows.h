#ifndef GENTRIE_ROWS_H_
#define GENTRIE_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "gentrie/builder.h"
#include "gentrie/view.h"

namespace gentrie {

/// The rows of a source whose values have type T, each with the end token behind it where there is one. Another thread
/// may write to the source meanwhile: whatever is read lies inside it, and what was read before is not relied on.
template <typename T>
class Rows {
 public:
  /// The tokens of a row, the end token not counted.
  struct Row {
    const T* tokens;
    std::uint64_t count;

    /// Read once: what is checked is what is used.
    std::int64_t operator[](std::uint64_t i) const { return __atomic_load_n(tokens + i, __ATOMIC_RELAXED); }
  };

  Rows(const SequenceSource& source, const BuildOptions& options)
      : source_(source),
        values_(static_cast<const T*>(source.values)),
        vocab_size_(options.vocab_size),
        end_token_(options.end_token_id),
        has_end_(options.end_token_id != kNoToken) {}

  Row operator[](std::uint64_t row) const {
    if (source_.indptr == nullptr) return {values_ + row * source_.length, source_.length};
    const std::uint64_t begin = bound(row), end = bound(row + 1);
    return {values_ + begin, std::max(begin, end) - begin};
  }
  bool has_end() const { return has_end_; }
  std::int64_t end_token() const { return end_token_; }
  std::uint64_t length(std::uint64_t num_tokens) const { return num_tokens + (has_end_ ? 1 : 0); }
  std::int64_t item_id(std::uint64_t row) const {
    return source_.item_ids ? __atomic_load_n(source_.item_ids + row, __ATOMIC_RELAXED)
                            : source_.first_item_id + static_cast<std::int64_t>(row);
  }
  GENTRIE_PREFETCH void prefetch(std::uint64_t row) const { __builtin_prefetch((*this)[row].tokens); }

  bool is_sound(std::int64_t token) const {
    return token >= 0 && token < vocab_size_ && !(has_end_ && token == end_token_);
  }
  bool has_sound_length(const Row& row) const {
    return row.count > 0 && length(row.count) <= TrieView::kMaxSequenceLength;
  }

  std::string name(std::uint64_t row) const { return source_.name + "[" + std::to_string(row) + "]"; }

  /// Why a row is refused that is empty, too long, or holds a token that is not sound.
  std::string complaint(std::uint64_t number) const {
    const Row row = (*this)[number];
    if (row.count == 0) return name(number) + " is empty";
    if (!has_sound_length(row)) {
      return name(number) + " has " + std::to_string(row.count) + " tokens, more than the limit of " +
             std::to_string(TrieView::kMaxSequenceLength);
    }
    for (std::uint64_t i = 0; i < row.count; ++i) {
      const std::int64_t token = row[i];
      if (is_sound(token)) continue;
      const std::string text = std::to_string(token), position = std::to_string(i);
      return token < 0 || token >= vocab_size_
                 ? name(number) + ": token " + text + " at position " + position +
                       " is outside [0, vocab_size=" + std::to_string(vocab_size_) + ")"
                 : name(number) + ": end_token_id=" + text + " stands inside the sequence, at position " + position +
                       " of " + std::to_string(row.count);
    }
    return change();
  }
  /// The complaint about a source that does not hold any more what it did.
  std::string change() const { return source_.name + " was changed while the trie was built"; }

 private:
  /// Where a row begins and the one before ends.
  std::uint64_t bound(std::uint64_t row) const {
    const std::int64_t place = __atomic_load_n(source_.indptr + row, __ATOMIC_RELAXED);
    return std::min(static_cast<std::uint64_t>(place), source_.num_values);  // a negative one becomes large
  }

  const SequenceSource& source_;
  const T* values_;
  std::int64_t vocab_size_;
  std::int64_t end_token_;
  bool has_end_;
};

}  // namespace gentrie

#endif  // GENTRIE_ROWS_H_
