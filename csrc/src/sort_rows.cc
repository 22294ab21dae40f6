#include "sort_rows.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "gentrie/view.h"
#include "parallel.h"
#include "radix_sort.h"
#include "token_index.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kRowsPerChunk = 1 << 14;

std::string at_row(std::uint64_t row) { return "sequences[" + std::to_string(row) + "]"; }

void lower_to(std::atomic<std::uint64_t>* least, std::uint64_t value) {
  std::uint64_t current = least->load(std::memory_order_relaxed);
  while (value < current && !least->compare_exchange_weak(current, value)) {
  }
}

void check_shape(const SequenceSource& source, const BuildOptions& options) {
  const std::int64_t vocab_size = options.vocab_size, end_token = options.end_token_id;
  if (vocab_size < 1 || vocab_size > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("vocab_size=" + std::to_string(vocab_size) + " is outside [1, 2147483647]");
  }
  if (end_token != kNoToken && (end_token < 0 || end_token >= vocab_size)) {
    throw std::invalid_argument("end_token_id=" + std::to_string(end_token) +
                                " is outside [0, vocab_size=" + std::to_string(vocab_size) + ")");
  }
  if (source.num_rows == 0) throw std::invalid_argument("sequences is empty: a catalog needs at least one item");
  if (source.num_rows > kMaxRows) {
    throw std::invalid_argument("sequences has " + std::to_string(source.num_rows) + " rows, more than the " +
                                std::to_string(kMaxRows) + " that one trie holds; build several by first tokens");
  }
  if (source.indptr == nullptr) return;
  if (source.indptr[0] != 0) {
    throw std::invalid_argument("indptr[0]=" + std::to_string(source.indptr[0]) + ", expected 0");
  }
  for (std::uint64_t row = 0; row < source.num_rows; ++row) {
    if (source.indptr[row + 1] < source.indptr[row]) {
      throw std::invalid_argument("indptr[" + std::to_string(row + 1) + "]=" + std::to_string(source.indptr[row + 1]) +
                                  " is less than indptr[" + std::to_string(row) +
                                  "]=" + std::to_string(source.indptr[row]));
    }
  }
  if (static_cast<std::uint64_t>(source.indptr[source.num_rows]) != source.num_values) {
    throw std::invalid_argument("indptr[-1]=" + std::to_string(source.indptr[source.num_rows]) +
                                " is not the number of values, " + std::to_string(source.num_values));
  }
}

/// Sorts rows of values of type T: a sample sort into buckets that fit a cache, each sorted by radix on a window of 64
/// bits of packed tokens; rows alike in a window are sorted by the next one.
template <typename T>
class RowSorter {
 public:
  RowSorter(const SequenceSource& source, const BuildOptions& options, int num_threads)
      : source_(source),
        values_(static_cast<const T*>(source.values)),
        vocab_size_(options.vocab_size),
        end_token_(options.end_token_id),
        end_length_(options.end_token_id != kNoToken ? 1 : 0),
        num_threads_(num_threads) {}

  FrontCoded run(const Tick& tick) {
    const auto within = [&](double from, double to) {
      return [&tick, from, to](double share) { tick(from + share * (to - from)); };
    };
    FrontCoded catalog;
    catalog.vocabulary = validate(within(0.0, 0.2));
    const TokenIndex index(catalog.vocabulary);
    index_ = &index;
    key_bits_ = bit_width(catalog.vocabulary.size());  // indices are shifted by one: 0 says that the sequence has ended
    key_tokens_ = 64 / key_bits_;
    const std::vector<std::uint32_t> order = sorted(within(0.2, 0.7));
    front_code(order, within(0.7, 1.0), &catalog);
    return catalog;
  }

 private:
  // --- Rows -------------------------------------------------------------------------------------------------------

  const T* begin_of(std::uint64_t row) const {
    return values_ + (source_.indptr ? static_cast<std::uint64_t>(source_.indptr[row]) : row * source_.length);
  }
  std::uint64_t tokens_of(std::uint64_t row) const {  // without the end token
    return source_.indptr ? static_cast<std::uint64_t>(source_.indptr[row + 1] - source_.indptr[row]) : source_.length;
  }
  std::uint64_t length_of(std::uint64_t row) const { return tokens_of(row) + end_length_; }
  std::int64_t item_of(std::uint64_t row) const {
    return source_.item_ids ? source_.item_ids[row] : static_cast<std::int64_t>(row);
  }
  void prefetch(std::uint64_t row) const { __builtin_prefetch(begin_of(row)); }

  /// Tokens that two sequences share, the end token included.
  std::uint64_t shared_by(std::uint64_t a, std::uint64_t b) const {
    const std::uint64_t a_tokens = tokens_of(a), b_tokens = tokens_of(b), limit = std::min(a_tokens, b_tokens);
    const T *const a_begin = begin_of(a), *const b_begin = begin_of(b);
    std::uint64_t i = 0;
    while (i < limit && a_begin[i] == b_begin[i]) ++i;
    return i == a_tokens && i == b_tokens ? i + end_length_ : i;
  }

  // --- Validation -------------------------------------------------------------------------------------------------

  bool is_sound(std::int64_t token) const {
    return token >= 0 && token < vocab_size_ && (end_length_ == 0 || token != end_token_);
  }

  std::string complaint(std::uint64_t row) const {
    const std::uint64_t length = tokens_of(row);
    if (length == 0) return at_row(row) + " is empty";
    if (length_of(row) > TrieView::kMaxSequenceLength) {
      return at_row(row) + " has " + std::to_string(length) + " tokens, more than the limit of " +
             std::to_string(TrieView::kMaxSequenceLength);
    }
    const T* const tokens = begin_of(row);
    std::uint64_t i = 0;
    while (is_sound(tokens[i])) ++i;
    const std::string token = std::to_string(tokens[i]);
    return tokens[i] < 0 || tokens[i] >= vocab_size_
               ? at_row(row) + ": token " + token + " at position " + std::to_string(i) +
                     " is outside [0, vocab_size=" + std::to_string(vocab_size_) + ")"
               : at_row(row) + ": end_token_id=" + token + " stands inside the sequence, at position " +
                     std::to_string(i) + " of " + std::to_string(length);
  }

  /// Checks every row and measures what the sort needs: the longest sequence and the prefix that all share. Returns
  /// the tokens that occur.
  std::vector<Token> validate(const Tick& tick) {
    const std::uint64_t num_rows = source_.num_rows;
    TokenSet seen(vocab_size_);
    std::atomic<std::uint64_t> first_bad{num_rows}, shared{tokens_of(0)}, shortfall{TrieView::kMaxSequenceLength};
    // The first bad row is reported whatever the number of threads: every chunk before it is looked at.
    parallel_for(
        num_rows, num_threads_, kRowsPerChunk,
        [&](std::uint64_t begin, std::uint64_t end) {
          std::uint64_t common = shared.load(std::memory_order_relaxed), longest = 0;
          for (std::uint64_t row = begin; row < end; ++row) {
            const std::uint64_t length = tokens_of(row);
            const T* const tokens = begin_of(row);
            bool good = length > 0 && length_of(row) <= TrieView::kMaxSequenceLength;
            for (std::uint64_t i = 0; good && i < length; ++i) {
              good = is_sound(tokens[i]);
              if (good) seen.mark(tokens[i]);
            }
            if (!good) {
              lower_to(&first_bad, row);
              return;
            }
            if (common > 0) common = std::min(common, shared_by(0, row));
            longest = std::max(longest, length_of(row));
          }
          lower_to(&shared, common);
          lower_to(&shortfall, TrieView::kMaxSequenceLength - longest);
        },
        [&](std::uint64_t done) { tick(static_cast<double>(done) / static_cast<double>(num_rows)); });
    if (first_bad < num_rows) throw std::invalid_argument(complaint(first_bad));
    if (end_length_ > 0) seen.mark(end_token_);
    common_prefix_ = shared;
    max_length_ = TrieView::kMaxSequenceLength - shortfall;
    return seen.tokens();
  }

  // --- Sorting ----------------------------------------------------------------------------------------------------

  /// The `key_tokens_` tokens of a row from `depth` on, the first in the highest bits. Rows compare as their keys do,
  /// and where the lowest token is 0 equal keys are equal rows.
  KeyedRow keyed(std::uint32_t row, std::uint64_t depth) const {
    const std::uint64_t length = tokens_of(row);
    const T* const tokens = begin_of(row);
    std::uint64_t key = 0;
    const std::uint64_t stop = depth + key_tokens_;
    std::uint64_t i = depth;
    for (const std::uint64_t inside = std::min(stop, length); i < inside; ++i) {
      key = key << key_bits_ | ((*index_)[tokens[i]] + 1);
    }
    if (i < stop && i == length && end_length_ > 0) {
      key = key << key_bits_ | ((*index_)[end_token_] + 1);
      ++i;
    }
    return {key == 0 ? 0 : key << key_bits_ * (stop - i), row};
  }

  /// All row numbers in the order of their sequences, those of one sequence by item id.
  std::vector<std::uint32_t> sorted(const Tick& tick) const {
    const std::uint64_t num_rows = source_.num_rows;
    // Buckets between sampled keys, so that a skewed first token costs nothing. Their number is a power of two and
    // small enough for one open cache line each while rows are dealt out.
    constexpr std::uint64_t kRowsPerBucket = 1 << 12, kMaxBuckets = 1 << 11, kSamplesPerBucket = 8;
    std::uint64_t num_buckets = 1;
    while (num_buckets < kMaxBuckets && num_buckets * kRowsPerBucket < num_rows) num_buckets *= 2;
    std::vector<std::uint64_t> splitters;
    for (std::uint64_t s = 0; s < num_buckets * kSamplesPerBucket; ++s) {
      const std::uint64_t row = s * num_rows / (num_buckets * kSamplesPerBucket);
      splitters.push_back(keyed(static_cast<std::uint32_t>(row), common_prefix_).key());
    }
    std::sort(splitters.begin(), splitters.end());
    for (std::uint64_t b = 1; b < num_buckets; ++b) splitters[b - 1] = splitters[b * kSamplesPerBucket];
    const auto bucket_of = [&](std::uint64_t key) {  // splitters not above the key
      std::uint64_t bucket = 0;
      for (std::uint64_t step = num_buckets / 2; step > 0; step /= 2) {
        bucket += splitters[bucket + step - 1] <= key ? step : 0;
      }
      return bucket;
    };

    // A counting scatter; each chunk of rows writes to its own part of each bucket.
    const std::uint64_t num_chunks = std::min<std::uint64_t>(static_cast<std::uint64_t>(num_threads_) * 4, num_rows);
    const std::uint64_t chunk_rows = (num_rows + num_chunks - 1) / num_chunks;
    std::vector<std::uint32_t> at(num_chunks * num_buckets, 0);
    std::vector<std::uint16_t> buckets(num_rows);
    const auto chunks = [&](double from, double to) {
      return [&, from, to](std::uint64_t done) {
        tick(from + (to - from) * static_cast<double>(done) / static_cast<double>(num_chunks));
      };
    };
    parallel_for(
        num_chunks, num_threads_, 1,
        [&](std::uint64_t chunk, std::uint64_t) {
          std::uint32_t* const counts = at.data() + chunk * num_buckets;
          for (std::uint64_t i = chunk * chunk_rows; i < std::min(num_rows, (chunk + 1) * chunk_rows); ++i) {
            const std::uint64_t bucket = bucket_of(keyed(static_cast<std::uint32_t>(i), common_prefix_).key());
            buckets[i] = static_cast<std::uint16_t>(bucket);
            ++counts[bucket];
          }
        },
        chunks(0.0, 0.3));
    std::vector<std::uint32_t> bucket_begin(num_buckets + 1, 0);
    std::uint32_t total = 0;
    for (std::uint64_t bucket = 0; bucket < num_buckets; ++bucket) {
      bucket_begin[bucket] = total;
      for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) {
        total += std::exchange(at[chunk * num_buckets + bucket], total);
      }
    }
    bucket_begin[num_buckets] = total;
    const std::unique_ptr<KeyedRow[]> rows(new KeyedRow[num_rows]);
    parallel_for(
        num_chunks, num_threads_, 1,
        [&](std::uint64_t chunk, std::uint64_t) {
          std::uint32_t* const place = at.data() + chunk * num_buckets;
          for (std::uint64_t i = chunk * chunk_rows; i < std::min(num_rows, (chunk + 1) * chunk_rows); ++i) {
            rows[place[buckets[i]]++] = keyed(static_cast<std::uint32_t>(i), common_prefix_);
          }
        },
        chunks(0.3, 0.5));
    buckets = {};

    std::vector<std::uint32_t> order(num_rows);
    parallel_for(
        num_buckets, num_threads_, 1,
        [&](std::uint64_t bucket, std::uint64_t) {
          const std::uint32_t begin = bucket_begin[bucket], end = bucket_begin[bucket + 1];
          sort_bucket(rows.get() + begin, end - begin);
          for (std::uint32_t i = begin; i < end; ++i) order[i] = rows[i].row;
        },
        [&](std::uint64_t done) { tick(0.5 + 0.5 * static_cast<double>(done) / static_cast<double>(num_buckets)); });
    return order;
  }

  void sort_bucket(KeyedRow* rows, std::uint64_t count) const {
    struct Group {
      std::uint64_t begin, end, depth;
    };
    const std::unique_ptr<KeyedRow[]> scratch(new KeyedRow[count]);
    std::vector<Group> groups{{0, count, common_prefix_}};
    while (!groups.empty()) {
      const Group group = groups.back();
      groups.pop_back();
      radix_sort(rows + group.begin, group.end - group.begin, scratch.get());
      std::uint64_t begin = group.begin;
      for (std::uint64_t i = begin + 1; i <= group.end; ++i) {
        if (i < group.end && rows[i].key() == rows[begin].key()) continue;
        if (i - begin > 1) {
          const std::uint64_t depth = group.depth + key_tokens_;
          const bool has_ended = (rows[begin].key() & ((std::uint64_t{1} << key_bits_) - 1)) == 0;
          if (has_ended) {
            std::sort(rows + begin, rows + i,
                      [this](const KeyedRow& a, const KeyedRow& b) { return item_of(a.row) < item_of(b.row); });
          } else {
            for (std::uint64_t j = begin; j < i; ++j) rows[j] = keyed(rows[j].row, depth);
            groups.push_back({begin, i, depth});
          }
        }
        begin = i;
      }
    }
  }

  // --- Front coding -----------------------------------------------------------------------------------------------

  void front_code(const std::vector<std::uint32_t>& order, const Tick& tick, FrontCoded* catalog) const {
    const std::uint64_t num_rows = order.size();
    const std::uint64_t num_chunks = (num_rows + Segment::kMaxSequences - 1) / Segment::kMaxSequences;
    std::vector<std::vector<Segment>> parts(num_chunks);
    std::atomic<std::uint64_t> first_clash{num_rows};
    parallel_for(
        num_chunks, num_threads_, 1,
        [&](std::uint64_t chunk, std::uint64_t) {
          parts[chunk] = code_part(order, chunk * Segment::kMaxSequences, catalog->token_bits(), &first_clash);
        },
        [&](std::uint64_t done) { tick(static_cast<double>(done) / static_cast<double>(num_chunks)); });
    if (first_clash < num_rows) {
      const std::uint64_t shorter = order[first_clash - 1], longer = order[first_clash];
      throw std::invalid_argument(at_row(shorter) + " (" + std::to_string(length_of(shorter)) +
                                  " tokens) is a prefix of " + at_row(longer) +
                                  "; pass end_token_id so that every sequence has an end of its own");
    }
    for (std::vector<Segment>& part : parts) {
      std::move(part.begin(), part.end(), std::back_inserter(catalog->segments));
    }
    catalog->settle();
  }

  /// The sequences whose first row stands at [begin, begin + kMaxSequences) of the order. Sorted order puts a sequence
  /// right before those it is a prefix of.
  std::vector<Segment> code_part(const std::vector<std::uint32_t>& order, std::uint64_t begin, std::uint32_t token_bits,
                                 std::atomic<std::uint64_t>* first_clash) const {
    constexpr std::uint64_t kAhead = 16;
    const std::uint64_t end = std::min<std::uint64_t>(order.size(), begin + Segment::kMaxSequences);
    std::vector<Segment> segments;
    SegmentWriter writer(token_bits, max_length_);
    bool is_ours = false;  // rows at the front may repeat the sequence before
    for (std::uint64_t i = begin; i < order.size(); ++i) {
      if (i + kAhead < order.size()) prefetch(order[i + kAhead]);
      const std::uint64_t row = order[i], length = length_of(row);
      const std::uint64_t shared = i > 0 ? shared_by(order[i - 1], row) : 0;
      if (i > 0 && shared == length_of(order[i - 1])) {
        if (shared != length) {
          lower_to(first_clash, i);
          return {};
        }
        if (is_ours) writer.add_item(item_of(row));
        continue;
      }
      if (i >= end) break;
      if (writer.is_full()) segments.push_back(writer.finish());
      const T* const tokens = begin_of(row);
      const std::uint64_t stored_from =
          writer.begin_sequence(static_cast<std::uint32_t>(shared), static_cast<std::uint32_t>(length));
      for (std::uint64_t at = stored_from; at < tokens_of(row); ++at) writer.push((*index_)[tokens[at]]);
      if (end_length_ > 0) writer.push((*index_)[end_token_]);
      writer.add_item(item_of(row));
      is_ours = true;
    }
    segments.push_back(writer.finish());
    return segments;
  }

  const SequenceSource& source_;
  const T* values_;
  std::int64_t vocab_size_;
  std::int64_t end_token_;
  std::uint64_t end_length_;  ///< 1 if an end token is appended, else 0
  int num_threads_;

  const TokenIndex* index_ = nullptr;
  std::uint64_t common_prefix_ = 0;  ///< tokens that all rows share
  std::uint64_t max_length_ = 0;
  std::uint32_t key_bits_ = 0;    ///< bits a token takes in a key
  std::uint32_t key_tokens_ = 0;  ///< tokens in a key
};

}  // namespace

FrontCoded sort_rows(const SequenceSource& source, const BuildOptions& options, int num_threads, const Tick& tick) {
  check_shape(source, options);
  return source.value_bytes == 4 ? RowSorter<std::int32_t>(source, options, num_threads).run(tick)
                                 : RowSorter<std::int64_t>(source, options, num_threads).run(tick);
}

}  // namespace gentrie
