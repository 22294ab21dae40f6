#include "sorted_sequences.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <utility>

#include "parallel.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kRowsPerChunk = 1 << 14;
constexpr std::uint32_t kSameSequence = std::numeric_limits<std::uint32_t>::max();

std::string at_row(std::uint64_t row) { return "sequences[" + std::to_string(row) + "]"; }

void lower_to(std::atomic<std::uint64_t>* least, std::uint64_t value) {
  std::uint64_t current = least->load(std::memory_order_relaxed);
  while (value < current && !least->compare_exchange_weak(current, value)) {
  }
}

}  // namespace

SortedSequences::SortedSequences(const SequenceSource& source, const BuildOptions& options, int num_threads,
                                 const Tick& tick)
    : source_(source),
      vocab_size_(options.vocab_size),
      end_token_(options.end_token_id),
      has_end_(options.end_token_id != kNoToken),
      num_threads_(num_threads) {
  const auto within = [&](double from, double to) { return [=](double share) { tick(from + share * (to - from)); }; };
  check_shape();
  validate(within(0.0, 0.2));
  index_vocabulary();
  measure_common_prefix();
  collect_leaves(sorted_entries(within(0.2, 0.8)), within(0.8, 1.0));
}

void SortedSequences::check_shape() const {
  if (vocab_size_ < 1 || vocab_size_ > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("vocab_size=" + std::to_string(vocab_size_) + " is outside [1, 2147483647]");
  }
  if (has_end_ && (end_token_ < 0 || end_token_ >= vocab_size_)) {
    throw std::invalid_argument("end_token_id=" + std::to_string(end_token_) +
                                " is outside [0, vocab_size=" + std::to_string(vocab_size_) + ")");
  }
  if (source_.num_rows == 0) throw std::invalid_argument("sequences is empty: a catalog needs at least one item");
  if (source_.num_rows >= std::numeric_limits<std::uint32_t>::max() / 2) {
    throw std::invalid_argument("sequences has " + std::to_string(source_.num_rows) +
                                " rows, more than the 2147483646 that one trie holds; build several by first tokens");
  }
  if (source_.indptr == nullptr) return;
  if (source_.indptr[0] != 0) {
    throw std::invalid_argument("indptr[0]=" + std::to_string(source_.indptr[0]) + ", expected 0");
  }
  for (std::uint64_t row = 0; row < source_.num_rows; ++row) {
    if (source_.indptr[row + 1] < source_.indptr[row]) {
      throw std::invalid_argument("indptr[" + std::to_string(row + 1) + "]=" + std::to_string(source_.indptr[row + 1]) +
                                  " is less than indptr[" + std::to_string(row) +
                                  "]=" + std::to_string(source_.indptr[row]));
    }
  }
  if (static_cast<std::uint64_t>(source_.indptr[source_.num_rows]) != source_.num_values) {
    throw std::invalid_argument("indptr[-1]=" + std::to_string(source_.indptr[source_.num_rows]) +
                                " is not the number of values, " + std::to_string(source_.num_values));
  }
}

std::string SortedSequences::complaint(std::uint64_t row) const {
  const std::uint64_t begin = row_begin(row), length = row_tokens(row);
  if (length == 0) return at_row(row) + " is empty";
  if (row_length(row) > TrieView::kMaxSequenceLength) {
    return at_row(row) + " has " + std::to_string(length) + " tokens, more than the limit of " +
           std::to_string(TrieView::kMaxSequenceLength);
  }
  for (std::uint64_t i = 0; i < length; ++i) {
    const std::int64_t token = value(begin + i);
    if (token < 0 || token >= vocab_size_) {
      return at_row(row) + ": token " + std::to_string(token) + " at position " + std::to_string(i) +
             " is outside [0, vocab_size=" + std::to_string(vocab_size_) + ")";
    }
    if (has_end_ && token == end_token_) {
      return at_row(row) + ": end_token_id=" + std::to_string(token) + " stands inside the sequence, at position " +
             std::to_string(i) + " of " + std::to_string(length);
    }
  }
  return {};
}

void SortedSequences::validate(const Tick& tick) {
  std::vector<std::atomic<std::uint64_t>> seen(static_cast<std::uint64_t>(vocab_size_) / 64 + 1);
  const auto mark = [&](std::int64_t token) {
    std::atomic<std::uint64_t>& word = seen[static_cast<std::uint64_t>(token) >> 6];
    const std::uint64_t bit = std::uint64_t{1} << (token & 63);
    if (!(word.load(std::memory_order_relaxed) & bit)) word.fetch_or(bit, std::memory_order_relaxed);
  };

  // The first bad row is reported whatever the number of threads: every chunk before it is looked at.
  std::atomic<std::uint64_t> first_bad{source_.num_rows};
  parallel_for(
      source_.num_rows, num_threads_, kRowsPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t row = begin; row < end && row < first_bad.load(std::memory_order_relaxed); ++row) {
          const std::uint64_t length = row_tokens(row), at = row_begin(row);
          bool good = length > 0 && row_length(row) <= TrieView::kMaxSequenceLength;
          for (std::uint64_t i = 0; good && i < length; ++i) {
            const std::int64_t token = value(at + i);
            good = token >= 0 && token < vocab_size_ && !(has_end_ && token == end_token_);
            if (good) mark(token);
          }
          if (!good) lower_to(&first_bad, row);
        }
      },
      [&](std::uint64_t done) { tick(static_cast<double>(done) / static_cast<double>(source_.num_rows)); });
  if (first_bad < source_.num_rows) throw std::invalid_argument(complaint(first_bad));

  if (has_end_) mark(end_token_);
  seen_.assign(seen.begin(), seen.end());
}

void SortedSequences::index_vocabulary() {
  seen_rank_.resize(seen_.size());
  for (std::uint64_t word = 0; word < seen_.size(); ++word) {
    seen_rank_[word] = static_cast<std::uint32_t>(vocabulary_.size());
    for (std::uint64_t bits = seen_[word]; bits != 0; bits &= bits - 1) {
      vocabulary_.push_back(static_cast<Token>(word * 64 + static_cast<std::uint64_t>(__builtin_ctzll(bits))));
    }
  }
  if (has_end_) end_index_ = index_of(end_token_);
  key_bits_ = bit_width(vocabulary_.size());  // indices are shifted by one: 0 says that the sequence has ended
  key_tokens_ = 64 / key_bits_;
}

void SortedSequences::measure_common_prefix() {
  std::atomic<std::uint64_t> shared{row_tokens(0)};
  parallel_for(source_.num_rows, num_threads_, kRowsPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
    std::uint64_t limit = shared.load(std::memory_order_relaxed);
    for (std::uint64_t row = begin; row < end && limit > 0; ++row) {
      limit = std::min(limit, row_tokens(row));
      std::uint64_t i = 0;
      while (i < limit && value(row_begin(row) + i) == value(row_begin(0) + i)) ++i;
      limit = i;
    }
    lower_to(&shared, limit);
  });
  common_prefix_ = shared;
}

std::uint64_t SortedSequences::key_of(std::uint64_t row) const {
  const std::uint64_t length = row_length(row);
  std::uint64_t key = 0;
  for (std::uint64_t i = common_prefix_; i < common_prefix_ + key_tokens_; ++i) {
    key = (key_bits_ < 64 ? key << key_bits_ : 0) | (i < length ? row_index_at(row, i) + 1 : 0);
  }
  return key << (64 - key_bits_ * key_tokens_);
}

std::uint64_t SortedSequences::shared_beyond_key(std::uint64_t a, std::uint64_t b) const {
  const std::uint64_t length = std::min(row_length(a), row_length(b));
  std::uint64_t i = std::min(common_prefix_ + key_tokens_, length);
  while (i < length && row_index_at(a, i) == row_index_at(b, i)) ++i;
  return i;
}

bool SortedSequences::less(const Entry& a, const Entry& b) const {
  if (a.key != b.key) return a.key < b.key;
  const std::uint64_t shared = shared_beyond_key(a.row, b.row);
  const bool a_ends = shared == row_length(a.row), b_ends = shared == row_length(b.row);
  if (a_ends && b_ends) return item_id(a.row) < item_id(b.row);
  if (a_ends || b_ends) return a_ends;
  return row_index_at(a.row, shared) < row_index_at(b.row, shared);
}

std::vector<SortedSequences::Entry> SortedSequences::sorted_entries(const Tick& tick) {
  const std::uint64_t num_rows = source_.num_rows;
  std::vector<Entry> entries(num_rows);
  parallel_for(num_rows, num_threads_, kRowsPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t row = begin; row < end; ++row) entries[row] = {key_of(row), static_cast<std::uint32_t>(row)};
  });
  tick(0.2);

  // Sample sort: buckets between sampled keys are sorted one by one, so that a skewed first token costs nothing.
  constexpr std::uint64_t kRowsPerBucket = 1 << 15, kSamplesPerBucket = 16;
  const std::uint64_t num_buckets = num_rows / kRowsPerBucket + 1;
  std::vector<std::uint64_t> splitters;
  for (std::uint64_t s = 0; s < num_buckets * kSamplesPerBucket; ++s) {
    splitters.push_back(entries[s * num_rows / (num_buckets * kSamplesPerBucket)].key);
  }
  std::sort(splitters.begin(), splitters.end());
  for (std::uint64_t b = 1; b < num_buckets; ++b) splitters[b - 1] = splitters[b * kSamplesPerBucket];
  splitters.resize(num_buckets - 1);

  std::vector<std::uint64_t> bucket_begin(num_buckets + 1, 0);
  std::vector<Entry> buckets;
  if (num_buckets == 1) {
    buckets = std::move(entries);
    bucket_begin[1] = num_rows;
  } else {
    // A stable counting scatter, chunk by chunk; each chunk writes to its own part of each bucket.
    const std::uint64_t num_chunks = static_cast<std::uint64_t>(num_threads_) * 4;
    const std::uint64_t chunk_rows = (num_rows + num_chunks - 1) / num_chunks;
    std::vector<std::uint64_t> at(num_chunks * num_buckets, 0);
    std::vector<std::uint16_t> bucket_of(num_rows);
    parallel_for(num_chunks, num_threads_, 1, [&](std::uint64_t chunk, std::uint64_t) {
      for (std::uint64_t i = chunk * chunk_rows; i < std::min(num_rows, (chunk + 1) * chunk_rows); ++i) {
        const auto above = std::upper_bound(splitters.begin(), splitters.end(), entries[i].key);
        const auto bucket = static_cast<std::uint64_t>(above - splitters.begin());
        bucket_of[i] = static_cast<std::uint16_t>(bucket);
        ++at[chunk * num_buckets + bucket];
      }
    });
    tick(0.4);
    std::uint64_t total = 0;
    for (std::uint64_t bucket = 0; bucket < num_buckets; ++bucket) {
      bucket_begin[bucket] = total;
      for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) {
        total += std::exchange(at[chunk * num_buckets + bucket], total);
      }
    }
    bucket_begin[num_buckets] = total;
    buckets.resize(num_rows);
    parallel_for(num_chunks, num_threads_, 1, [&](std::uint64_t chunk, std::uint64_t) {
      for (std::uint64_t i = chunk * chunk_rows; i < std::min(num_rows, (chunk + 1) * chunk_rows); ++i) {
        buckets[at[chunk * num_buckets + bucket_of[i]]++] = entries[i];
      }
    });
    entries = {};
  }
  tick(0.5);

  parallel_for(
      num_buckets, num_threads_, 1,
      [&](std::uint64_t bucket, std::uint64_t) {
        std::sort(buckets.begin() + static_cast<std::ptrdiff_t>(bucket_begin[bucket]),
                  buckets.begin() + static_cast<std::ptrdiff_t>(bucket_begin[bucket + 1]),
                  [this](const Entry& a, const Entry& b) { return less(a, b); });
      },
      [&](std::uint64_t done) { tick(0.5 + 0.5 * static_cast<double>(done) / static_cast<double>(num_buckets)); });
  return buckets;
}

void SortedSequences::collect_leaves(std::vector<Entry> entries, const Tick& tick) {
  const std::uint64_t num_rows = entries.size();
  std::vector<std::uint32_t> shared(num_rows);
  std::atomic<std::uint64_t> first_clash{num_rows};
  parallel_for(
      num_rows, num_threads_, kRowsPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t i = std::max<std::uint64_t>(begin, 1); i < end; ++i) {
          const Entry &before = entries[i - 1], &here = entries[i];
          std::uint64_t lcp;
          if (before.key != here.key) {
            lcp = common_prefix_ + static_cast<std::uint64_t>(__builtin_clzll(before.key ^ here.key)) / key_bits_;
          } else {
            lcp = shared_beyond_key(before.row, here.row);
          }
          // Sorted order puts a sequence right before those it is a prefix of.
          if (lcp == row_length(before.row)) {
            if (lcp != row_length(here.row)) lower_to(&first_clash, i);
            lcp = kSameSequence;
          }
          shared[i] = static_cast<std::uint32_t>(lcp);
        }
      },
      [&](std::uint64_t done) { tick(0.8 * static_cast<double>(done) / static_cast<double>(num_rows)); });
  if (first_clash < num_rows) {
    const std::uint64_t shorter = entries[first_clash - 1].row, longer = entries[first_clash].row;
    throw std::invalid_argument(at_row(shorter) + " (" + std::to_string(row_length(shorter)) +
                                " tokens) is a prefix of " + at_row(longer) +
                                "; pass end_token_id so that every sequence has an end of its own");
  }

  std::uint64_t num_leaves = num_rows;
  for (std::uint64_t i = 1; i < num_rows; ++i) num_leaves -= shared[i] == kSameSequence ? 1 : 0;
  rows_.reserve(num_leaves);
  lcp_.reserve(num_leaves);
  item_indptr_.reserve(num_leaves + 1);
  item_ids_.reserve(num_rows);
  for (std::uint64_t i = 0; i < num_rows; ++i) {
    const std::int64_t id = item_id(entries[i].row);
    if (i == 0 || shared[i] != kSameSequence) {
      item_indptr_.push_back(static_cast<std::uint32_t>(item_ids_.size()));
      rows_.push_back(entries[i].row);
      lcp_.push_back(shared[i]);
    } else if (item_ids_.back() == id) {
      continue;  // the same pair again
    }
    item_ids_.push_back(id);
  }
  item_indptr_.push_back(static_cast<std::uint32_t>(item_ids_.size()));
}

}  // namespace gentrie
