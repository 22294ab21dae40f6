#include "sort_rows.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "machine.h"
#include "parallel.h"
#include "radix_sort.h"
#include "rows.h"
#include "token_index.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kRowsPerChunk = 1 << 14;

/// Sorts rows of values of type T: a sample sort into buckets that fit a cache, each sorted by radix on a window of 64
/// bits of packed tokens; rows alike in a window are sorted by the next one. Inside, rows are numbered from `first_`.
template <typename T>
class RowSorter {
  using Row = typename Rows<T>::Row;

 public:
  RowSorter(const SequenceSource& source, std::uint64_t begin, std::uint64_t end, const BuildOptions& options,
            int num_threads, MemoryBudget* budget)
      : rows_(source, options),
        first_(begin),
        num_rows_(end - begin),
        vocab_size_(options.vocab_size),
        num_threads_(num_threads),
        budget_(budget) {}

  FrontCoded run(const Tick& tick) {
    const auto within = [&](double from, double to) {
      return [&tick, from, to](double share) { tick(from + share * (to - from)); };
    };
    FrontCoded catalog(budget_);
    catalog.vocabulary = validate(within(0.0, 0.2));
    const TokenIndex index(catalog.vocabulary);
    index_ = &index;
    key_bits_ = bit_width(catalog.vocabulary.size());  // indices are shifted by one: 0 says that the sequence has ended
    key_tokens_ = 64 / key_bits_;
    const MemoryShare order_memory(budget_, num_rows_ * sizeof(std::uint32_t), "sorting");
    const std::vector<std::uint32_t> order = sorted(within(0.2, 0.7));
    front_code(order, within(0.7, 1.0), &catalog);
    return catalog;
  }

 private:
  // --- Validation -------------------------------------------------------------------------------------------------

  /// Checks every row and measures what the sort needs: the longest sequence and the prefix that all share. Returns
  /// the tokens that occur.
  std::vector<Token> validate(const Tick& tick) {
    const MemoryShare memory(budget_, static_cast<std::uint64_t>(vocab_size_) / 8, "the tokens that occur");
    TokenSet seen(vocab_size_);
    constexpr std::uint64_t kLongest = TrieView::kMaxSequenceLength;
    std::atomic<std::uint64_t> first_bad{num_rows_}, shared{rows_[first_].count}, shortfall{kLongest};
    // The first bad row is reported whatever the number of threads: every chunk before it is looked at.
    parallel_for(
        num_rows_, num_threads_, kRowsPerChunk,
        [&](std::uint64_t begin, std::uint64_t end) {
          std::uint64_t common = shared.load(std::memory_order_relaxed), longest = 0;
          const Row first = rows_[first_];
          for (std::uint64_t number = begin; number < end; ++number) {
            const Row row = rows_[first_ + number];
            bool good = rows_.has_sound_length(row);
            for (std::uint64_t i = 0; good && i < row.count; ++i) {
              const std::int64_t token = row[i];
              good = rows_.is_sound(token);
              if (good) seen.mark(token);
            }
            if (!good) {
              lower_to(&first_bad, number);
              return;
            }
            common = std::min({common, first.count, row.count});
            for (std::uint64_t i = 0; i < common; ++i) {
              if (row[i] != first[i]) common = i;
            }
            longest = std::max(longest, rows_.length(row.count));
          }
          lower_to(&shared, common);
          lower_to(&shortfall, kLongest - longest);
        },
        [&](std::uint64_t done) { tick(static_cast<double>(done) / static_cast<double>(num_rows_)); });
    if (first_bad < num_rows_) throw std::invalid_argument(rows_.complaint(first_ + first_bad));
    if (rows_.has_end()) seen.mark(rows_.end_token());
    common_prefix_ = shared;
    max_length_ = kLongest - shortfall;
    return seen.tokens();
  }

  // --- Sorting ----------------------------------------------------------------------------------------------------

  /// The `key_tokens_` tokens of a row from `depth` on, the first in the highest bits. Rows compare as their keys do,
  /// and where the lowest token is 0 equal keys are equal rows.
  KeyedRow keyed(std::uint32_t number, std::uint64_t depth) const {
    const Row row = rows_[first_ + number];
    const std::uint64_t stop = depth + key_tokens_;
    std::uint64_t key = 0, i = depth;
    for (const std::uint64_t inside = std::min(stop, row.count); i < inside; ++i) {
      key = key << key_bits_ | ((*index_)[row[i]] + 1);
    }
    if (i < stop && i == row.count && rows_.has_end()) {
      key = key << key_bits_ | ((*index_)[rows_.end_token()] + 1);
      ++i;
    }
    return {key == 0 ? 0 : key << key_bits_ * (stop - i), number};
  }
  /// A row whose key is in the order of item ids.
  KeyedRow by_item_id(std::uint32_t number) const {
    return {static_cast<std::uint64_t>(rows_.item_id(first_ + number)) ^ std::uint64_t{1} << 63, number};
  }
  std::uint64_t first_key(std::uint64_t row) const {
    return keyed(static_cast<std::uint32_t>(row), common_prefix_).key();
  }

  /// Splits the keys into buckets of like size; their number is a power of two and small enough for one open cache
  /// line each while rows are dealt out. Sampled, so that a skewed first token costs nothing.
  std::vector<std::uint64_t> sampled_splitters() const {
    constexpr std::uint64_t kRowsPerBucket = 1 << 12, kMaxBuckets = 1 << 11, kSamplesPerBucket = 8;
    std::uint64_t num_buckets = 1;
    while (num_buckets < kMaxBuckets && num_buckets * kRowsPerBucket < num_rows_) num_buckets *= 2;
    std::vector<std::uint64_t> splitters;
    for (std::uint64_t s = 0; s < num_buckets * kSamplesPerBucket; ++s) {
      splitters.push_back(first_key(s * num_rows_ / (num_buckets * kSamplesPerBucket)));
    }
    std::sort(splitters.begin(), splitters.end());
    for (std::uint64_t b = 1; b < num_buckets; ++b) splitters[b - 1] = splitters[b * kSamplesPerBucket];
    splitters.resize(num_buckets - 1);
    return splitters;
  }

  /// All row numbers in the order of their sequences, those of one sequence by item id.
  std::vector<std::uint32_t> sorted(const Tick& tick) const {
    const std::vector<std::uint64_t> splitters = sampled_splitters();
    const std::uint64_t num_buckets = splitters.size() + 1;
    const auto bucket_of = [&](std::uint64_t key) {  // splitters not above the key
      std::uint64_t bucket = 0;
      for (std::uint64_t step = num_buckets / 2; step > 0; step /= 2) {
        bucket += splitters[bucket + step - 1] <= key ? step : 0;
      }
      return bucket;
    };

    // A counting scatter; each chunk of rows writes to its own part of each bucket. A million rows at most, so that
    // an interrupt is seen soon.
    const std::uint64_t num_chunks =
        std::max<std::uint64_t>(static_cast<std::uint64_t>(num_threads_) * 4, num_rows_ >> 20);
    const std::uint64_t chunk_rows = num_rows_ / num_chunks + 1;
    const MemoryShare rows_memory(budget_, num_rows_ * sizeof(KeyedRow), "sorting");
    MemoryShare buckets_memory(budget_, num_rows_ * sizeof(std::uint16_t), "sorting");
    std::vector<std::uint32_t> at(num_chunks * num_buckets, 0);
    std::vector<std::uint16_t> buckets(num_rows_);
    const auto for_each_chunk = [&](double from, double to, const auto& visit) {
      parallel_for(
          num_chunks, num_threads_, 1,
          [&](std::uint64_t chunk, std::uint64_t) {
            std::uint32_t* const places = at.data() + chunk * num_buckets;
            const std::uint64_t end = std::min(num_rows_, (chunk + 1) * chunk_rows);
            for (std::uint64_t row = chunk * chunk_rows; row < end; ++row) visit(row, places);
          },
          [&](std::uint64_t done) {
            tick(from + (to - from) * static_cast<double>(done) / static_cast<double>(num_chunks));
          });
    };
    for_each_chunk(0.0, 0.3, [&](std::uint64_t row, std::uint32_t* counts) {
      const std::uint64_t bucket = bucket_of(first_key(row));
      buckets[row] = static_cast<std::uint16_t>(bucket);
      ++counts[bucket];
    });
    std::vector<std::uint32_t> bucket_begin(num_buckets + 1, 0);
    std::uint32_t total = 0;
    for (std::uint64_t bucket = 0; bucket < num_buckets; ++bucket) {
      bucket_begin[bucket] = total;
      for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) {
        total += std::exchange(at[chunk * num_buckets + bucket], total);
      }
    }
    bucket_begin[num_buckets] = total;
    const std::unique_ptr<KeyedRow[]> rows(new KeyedRow[num_rows_]);
    for_each_chunk(0.3, 0.5, [&](std::uint64_t row, std::uint32_t* places) {
      rows[places[buckets[row]]++] = keyed(static_cast<std::uint32_t>(row), common_prefix_);
    });
    free_vector(&buckets);
    buckets_memory.release();

    std::vector<std::uint32_t> order(num_rows_);
    parallel_for(
        num_buckets, num_threads_, 1,
        [&](std::uint64_t bucket, std::uint64_t, const auto& checkpoint) {
          const std::uint32_t begin = bucket_begin[bucket], end = bucket_begin[bucket + 1];
          sort_bucket(rows.get() + begin, end - begin, checkpoint);
          for (std::uint32_t i = begin; i < end; ++i) order[i] = rows[i].row;
        },
        [&](std::uint64_t done) { tick(0.5 + 0.5 * static_cast<double>(done) / static_cast<double>(num_buckets)); });
    return order;
  }

  template <typename Checkpoint>
  void sort_bucket(KeyedRow* rows, std::uint64_t count, const Checkpoint& checkpoint) const {
    struct Group {
      std::uint64_t begin, end, depth;
    };
    const MemoryShare memory(budget_, count * sizeof(KeyedRow), "sorting");
    const std::unique_ptr<KeyedRow[]> scratch(new KeyedRow[count]);
    std::vector<Group> groups{{0, count, common_prefix_}};
    while (!groups.empty()) {
      const Group group = groups.back();
      groups.pop_back();
      radix_sort(rows + group.begin, group.end - group.begin, scratch.get(), checkpoint);
      std::uint64_t begin = group.begin;
      for (std::uint64_t i = begin + 1; i <= group.end; ++i) {
        if (i < group.end && rows[i].key() == rows[begin].key()) continue;
        if (i - begin > 1) {
          const bool has_ended = (rows[begin].key() & ((std::uint64_t{1} << key_bits_) - 1)) == 0;
          if (has_ended) {
            for (std::uint64_t j = begin; j < i; ++j) rows[j] = by_item_id(rows[j].row);
            radix_sort(rows + begin, i - begin, scratch.get(), checkpoint);
          } else {
            const std::uint64_t depth = group.depth + key_tokens_;
            for (std::uint64_t j = begin; j < i; ++j) rows[j] = keyed(rows[j].row, depth);
            groups.push_back({begin, i, depth});
          }
        }
        begin = i;
      }
    }
  }

  // --- Front coding -----------------------------------------------------------------------------------------------

  /// Consecutive sequences as they were read, once each: what rests on more than one reading of the source (the order
  /// of the rows, the cut into parts) is checked against it.
  struct Part {
    std::vector<Segment> segments;
    std::vector<T> before, last;  ///< the tokens of the sequence before the first one, and of the last one
    std::uint64_t num_rows = 0;
  };

  void front_code(const std::vector<std::uint32_t>& order, const Tick& tick, FrontCoded* catalog) const {
    const std::uint64_t num_chunks = (num_rows_ + Segment::kMaxSequences - 1) / Segment::kMaxSequences;
    std::vector<Part> parts(num_chunks);
    std::atomic<std::uint64_t> first_clash{num_rows_};
    parallel_for(
        num_chunks, num_threads_, 1,
        [&](std::uint64_t chunk, std::uint64_t, const auto& checkpoint) {
          parts[chunk] =
              code_part(order, chunk * Segment::kMaxSequences, catalog->token_bits(), &first_clash, checkpoint);
          for (const Segment& segment : parts[chunk].segments) {
            catalog->memory.grow(segment.nbytes(), "sorted sequences");
          }
        },
        [&](std::uint64_t done) { tick(static_cast<double>(done) / static_cast<double>(num_chunks)); });
    if (first_clash < num_rows_) {
      const std::uint64_t shorter = first_ + order[first_clash - 1], longer = first_ + order[first_clash];
      throw std::invalid_argument(rows_.name(shorter) + " (" + std::to_string(rows_.length(rows_[shorter].count)) +
                                  " tokens) is a prefix of " + rows_.name(longer) +
                                  "; pass end_token_id so that every sequence has an end of its own");
    }
    const std::vector<T>* last = nullptr;
    std::uint64_t num_rows = 0;
    for (Part& part : parts) {
      num_rows += part.num_rows;
      if (part.segments.empty()) continue;
      if (last != nullptr && part.before != *last) fail_changed();
      last = &part.last;
      std::move(part.segments.begin(), part.segments.end(), std::back_inserter(catalog->segments));
    }
    if (num_rows != num_rows_) fail_changed();
    catalog->max_length = max_length_;
  }

  /// The sequences whose first row stands at [begin, begin + kMaxSequences) of the order. Sorted order puts a sequence
  /// right before those it is a prefix of.
  template <typename Checkpoint>
  Part code_part(const std::vector<std::uint32_t>& order, std::uint64_t begin, std::uint32_t token_bits,
                 std::atomic<std::uint64_t>* first_clash, const Checkpoint& checkpoint) const {
    constexpr std::uint64_t kAhead = 16;
    const std::uint64_t end = std::min<std::uint64_t>(order.size(), begin + Segment::kMaxSequences);
    Part part;
    SegmentWriter writer(token_bits, max_length_);
    std::vector<T> before, current;
    if (begin > 0) read(first_ + order[begin - 1], &before);
    std::int64_t last_item = 0;
    for (std::uint64_t i = begin; i < order.size(); ++i) {
      if (i % Segment::kMaxSequences == 0) checkpoint();
      if (i + kAhead < order.size()) rows_.prefetch(first_ + order[i + kAhead]);
      const std::uint64_t row = first_ + order[i];
      const std::int64_t item = rows_.item_id(row);
      read(row, &current);
      const std::uint64_t length = rows_.length(current.size()), length_before = rows_.length(before.size());
      const std::uint64_t shared = i > 0 ? shared_by(before, current) : 0;
      const bool is_ours = part.num_rows > 0;  // rows at the front may repeat the sequence before
      if (i > 0 && shared == length_before) {
        if (shared != length) {
          lower_to(first_clash, i);
          return {};
        }
        if (is_ours) {
          if (item < last_item) fail_changed();
          writer.add_item(last_item = item);
          ++part.num_rows;
        }
        continue;
      }
      if (i >= end) break;
      if (i > 0 && (shared == length || token_at(current, shared) < token_at(before, shared))) fail_changed();
      if (!is_ours) part.before = before;
      if (writer.is_full()) part.segments.push_back(writer.finish());
      const std::uint64_t stored_from =
          writer.begin_sequence(static_cast<std::uint32_t>(shared), static_cast<std::uint32_t>(length));
      for (std::uint64_t at = stored_from; at < length; ++at) {
        const std::int64_t token = token_at(current, at);
        if (!index_->contains(token)) fail_changed();
        writer.push((*index_)[token]);
      }
      writer.add_item(last_item = item);
      ++part.num_rows;
      before.swap(current);
    }
    if (part.num_rows > 0) part.segments.push_back(writer.finish());
    part.last = std::move(before);
    return part;
  }

  void read(std::uint64_t number, std::vector<T>* tokens) const {
    const Row row = rows_[number];
    if (row.count == 0 || rows_.length(row.count) > max_length_) fail_changed();
    tokens->resize(row.count);
    for (std::uint64_t i = 0; i < row.count; ++i) (*tokens)[i] = static_cast<T>(row[i]);
  }
  /// Token of a sequence, of which `tokens` are all but the end token.
  std::int64_t token_at(const std::vector<T>& tokens, std::uint64_t position) const {
    return position < tokens.size() ? tokens[position] : rows_.end_token();
  }
  /// Tokens that two sequences share, the end token included.
  std::uint64_t shared_by(const std::vector<T>& a, const std::vector<T>& b) const {
    const std::uint64_t limit = std::min(a.size(), b.size());
    std::uint64_t i = 0;
    while (i < limit && a[i] == b[i]) ++i;
    return i == a.size() && i == b.size() ? rows_.length(i) : i;
  }
  [[noreturn]] void fail_changed() const { throw std::invalid_argument(rows_.change()); }

  Rows<T> rows_;
  std::uint64_t first_;
  std::uint64_t num_rows_;
  std::int64_t vocab_size_;
  int num_threads_;
  MemoryBudget* budget_;

  const TokenIndex* index_ = nullptr;
  std::uint64_t common_prefix_ = 0;  ///< tokens that all rows share
  std::uint64_t max_length_ = 0;
  std::uint32_t key_bits_ = 0;    ///< bits a token takes in a key
  std::uint32_t key_tokens_ = 0;  ///< tokens in a key
};

}  // namespace

FrontCoded sort_rows(const SequenceSource& source, std::uint64_t begin, std::uint64_t end, const BuildOptions& options,
                     int num_threads, MemoryBudget* budget, const Tick& tick) {
  const auto run = [&](auto sorter) { return sorter.run(tick); };
  return source.value_bytes == 4 ? run(RowSorter<std::int32_t>(source, begin, end, options, num_threads, budget))
                                 : run(RowSorter<std::int64_t>(source, begin, end, options, num_threads, budget));
}

}  // namespace gentrie
