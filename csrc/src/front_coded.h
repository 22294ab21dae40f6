#ifndef GENTRIE_FRONT_CODED_H_
#define GENTRIE_FRONT_CODED_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "gentrie/packed.h"
#include "gentrie/types.h"
#include "memory_budget.h"

namespace gentrie {

/// Numbers below 256 in a byte each, any others in four.
class Lengths {
 public:
  explicit Lengths(std::uint64_t limit = 0) : wide_(limit > std::numeric_limits<std::uint8_t>::max()) {}

  std::uint64_t nbytes() const { return nbytes_of(size()); }
  std::uint64_t nbytes_of(std::uint64_t size) const { return wide_ ? 4 * size : size; }
  std::uint64_t size() const { return wide_ ? words_.size() : bytes_.size(); }
  void resize(std::uint64_t size) { wide_ ? words_.resize(size) : bytes_.resize(size); }
  void set(std::uint64_t i, std::uint32_t value) {
    if (wide_) {
      words_[i] = value;
    } else {
      bytes_[i] = static_cast<std::uint8_t>(value);
    }
  }
  void push_back(std::uint32_t value) {
    if (wide_) {
      words_.push_back(value);
    } else {
      bytes_.push_back(static_cast<std::uint8_t>(value));
    }
  }
  std::uint32_t operator[](std::uint64_t i) const { return wide_ ? words_[i] : bytes_[i]; }

  /// Calls visit(vector) with the two forms, of which at least one is empty; after they were filled, settle_width().
  template <typename Visit>
  void for_each_array(const Visit& visit) {
    visit(bytes_);
    visit(words_);
  }
  template <typename Visit>
  void for_each_array(const Visit& visit) const {
    visit(bytes_);
    visit(words_);
  }
  void settle_width() { wide_ = !words_.empty(); }

  /// Calls visit(const T*) with the numbers as they are stored.
  template <typename Visit>
  auto visit(const Visit& visit) const {
    return wide_ ? visit(words_.data()) : visit(bytes_.data());
  }

 private:
  bool wide_;
  std::vector<std::uint8_t> bytes_;
  std::vector<std::uint32_t> words_;
};

/// Consecutive sequences of a sorted catalog: of each only what it does not share with the one before, and its items.
/// The first is stored whole, so that reading may begin at any segment.
struct Segment {
  static constexpr std::uint32_t kMaxSequences = 1 << 13;
  static constexpr std::uint64_t kMaxTokens = std::uint64_t{1} << 20;  ///< no sequence is added beyond
  static constexpr std::uint32_t kBlock = 16;                          ///< sequences that share one entry of `offsets`

  std::uint32_t first_shared = 0;  ///< tokens that the first sequence shares with the last of the segment before
  Lengths shared;                  ///< tokens of each that are those of the one before and not stored again; first: 0
  Lengths stored;                  ///< tokens of each that are stored
  std::vector<std::uint32_t> offsets;   ///< where the tokens of every 16th sequence begin
  std::vector<std::uint32_t> tokens;    ///< vocabulary indices, see PackedView
  std::vector<std::int32_t> items;      ///< item ids, sequence after sequence, ascending within one
  std::vector<std::int64_t> big_items;  ///< the same where one needs more than 32 bits
  std::vector<std::uint32_t> repeats;   ///< the sequence of each item that is not its sequence's first

  std::uint32_t num_sequences() const { return static_cast<std::uint32_t>(shared.size()); }
  std::uint64_t nbytes() const;
  std::uint64_t num_items() const { return items.size() + big_items.size(); }
  std::int64_t item(std::uint64_t i) const { return big_items.empty() ? items[i] : big_items[i]; }
  std::uint32_t length(std::uint32_t i) const { return shared[i] + stored[i]; }
  /// Where the stored tokens of sequence i begin.
  std::uint64_t offset(std::uint32_t i) const {
    std::uint64_t at = offsets[i / kBlock];
    for (std::uint32_t j = i / kBlock * kBlock; j < i; ++j) at += stored[j];
    return at;
  }
};

/// A catalog's distinct sequences in lexicographic order.
struct FrontCoded {
  explicit FrontCoded(MemoryBudget* budget) : memory(budget) {}

  std::vector<Token> vocabulary;  ///< the tokens that occur, ascending; sequences hold indices into it
  std::vector<Segment> segments;  ///< none of them empty
  std::uint64_t max_length = 0;   ///< tokens of the longest sequence
  MemoryShare memory;             ///< of the segments

  std::uint32_t token_bits() const { return bit_width(vocabulary.size() - 1); }
};

/// Makes a segment, sequence by sequence in ascending order.
class SegmentWriter {
 public:
  /// `max_length` bounds the length of any sequence.
  SegmentWriter(std::uint32_t token_bits, std::uint64_t max_length) : bits_(token_bits), max_length_(max_length) {
    clear();
  }

  bool is_full() const { return num_sequences() == Segment::kMaxSequences || num_tokens_ >= Segment::kMaxTokens; }

  /// Begins a sequence that shares `shared` tokens with the one before. The tokens to push next begin at the position
  /// that is returned: behind those, or, of the first of a segment, at 0.
  std::uint32_t begin_sequence(std::uint32_t shared, std::uint32_t length) {
    if (num_sequences() == 0) {
      segment_.first_shared = shared;
      shared = 0;
    }
    if (num_sequences() % Segment::kBlock == 0) segment_.offsets.push_back(static_cast<std::uint32_t>(num_tokens_));
    segment_.shared.push_back(shared);
    segment_.stored.push_back(length - shared);
    num_tokens_ += length - shared;
    has_item_ = false;
    return shared;
  }
  void push(std::uint32_t index) {
    window_ |= std::uint64_t{index} << filled_;
    filled_ += bits_;
    if (filled_ < 32) return;
    segment_.tokens.push_back(static_cast<std::uint32_t>(window_));
    window_ >>= 32;
    filled_ -= 32;
  }
  /// Adds an item to the sequence last begun; ids come in ascending order, and one that comes again counts once.
  void add_item(std::int64_t id) {
    if (has_item_ && items_.back() == id) return;
    if (has_item_) segment_.repeats.push_back(num_sequences() - 1);
    has_item_ = true;
    items_.push_back(id);
  }
  /// The segment so far; the writer is empty again, with its memory kept.
  Segment finish();

 private:
  std::uint32_t num_sequences() const { return segment_.num_sequences(); }
  void clear();

  std::uint32_t bits_;
  std::uint64_t max_length_;
  Segment segment_;
  std::vector<std::int64_t> items_;
  std::uint64_t num_tokens_ = 0;
  std::uint64_t window_ = 0;
  std::uint32_t filled_ = 0;
  bool has_item_ = false;
};

}  // namespace gentrie

#endif  // GENTRIE_FRONT_CODED_H_
