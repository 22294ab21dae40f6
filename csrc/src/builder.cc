#include "gentrie/builder.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "layout.h"
#include "machine.h"
#include "merge_runs.h"
#include "sort_rows.h"
#include "sorted_run.h"

namespace gentrie {

namespace {

void check_options(const BuildOptions& options) {
  const std::int64_t vocab_size = options.vocab_size, end_token = options.end_token_id;
  if (vocab_size < 1 || vocab_size > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("vocab_size=" + std::to_string(vocab_size) + " is outside [1, 2147483647]");
  }
  if (end_token != kNoToken && (end_token < 0 || end_token >= vocab_size)) {
    throw std::invalid_argument("end_token_id=" + std::to_string(end_token) +
                                " is outside [0, vocab_size=" + std::to_string(vocab_size) + ")");
  }
}

void check_source(const SequenceSource& source, const Tick& tick) {
  if (source.num_rows > kMaxRows) {
    throw std::invalid_argument(source.name + " has " + std::to_string(source.num_rows) + " rows, more than the " +
                                std::to_string(kMaxRows) + " that one trie holds; build several by first tokens");
  }
  if (source.indptr == nullptr) return;
  const std::string indptr = source.name + ": indptr";
  if (source.indptr[0] != 0) {
    throw std::invalid_argument(indptr + "[0]=" + std::to_string(source.indptr[0]) + ", expected 0");
  }
  constexpr std::uint64_t kRowsPerTick = 1 << 20;
  for (std::uint64_t row = 0; row < source.num_rows; ++row) {
    if (row % kRowsPerTick == 0) tick(0.0);
    if (source.indptr[row + 1] < source.indptr[row]) {
      throw std::invalid_argument(indptr + "[" + std::to_string(row + 1) +
                                  "]=" + std::to_string(source.indptr[row + 1]) + " is less than indptr[" +
                                  std::to_string(row) + "]=" + std::to_string(source.indptr[row]));
    }
  }
  if (static_cast<std::uint64_t>(source.indptr[source.num_rows]) != source.num_values) {
    throw std::invalid_argument(indptr + "[-1]=" + std::to_string(source.indptr[source.num_rows]) +
                                " is not the number of values, " + std::to_string(source.num_values));
  }
}

/// What one call reports to the caller's callback: some twenty times a second, and at the end.
class Reporter {
 public:
  Reporter(const BuildOptions& options, std::uint64_t total) : progress_(options.progress), total_(total) {}

  /// Reports the shares of a part of the work, from 0 to 1, as [from, to] of the whole.
  Tick part(double from, double to) {
    return [this, from, to](double share) {
      const auto now = std::chrono::steady_clock::now();
      if (!progress_ || now < next_) return;
      next_ = now + std::chrono::milliseconds(50);
      progress_(static_cast<std::uint64_t>((from + share * (to - from)) * static_cast<double>(total_)), total_);
    };
  }
  void finish() const {
    if (progress_) progress_(total_, total_);
  }

 private:
  const std::function<void(std::uint64_t, std::uint64_t)>& progress_;
  std::uint64_t total_;
  std::chrono::steady_clock::time_point next_;
};

int threads_of(const BuildOptions& options) {
  return options.num_threads > 0 ? options.num_threads : default_num_threads();
}

std::uint64_t memory_of(const BuildOptions& options) {
  return options.memory_limit > 0 ? options.memory_limit : available_memory();
}

}  // namespace

std::shared_ptr<const Trie> build_trie(const SequenceSource& source, const BuildOptions& options) {
  check_options(options);
  Reporter reporter(options, source.num_rows);
  check_source(source, reporter.part(0.0, 0.0));
  if (source.num_rows == 0) throw std::invalid_argument(source.name + " is empty: a catalog needs at least one item");
  // For so few, threads take longer to start than the work, and the system longer to say how much memory it has.
  constexpr std::uint64_t kFewValues = 1 << 13;
  const bool is_small = source.num_values + source.num_rows < kFewValues;
  const int num_threads = is_small ? 1 : threads_of(options);
  MemoryBudget budget(is_small && options.memory_limit == 0 ? std::numeric_limits<std::uint64_t>::max() / 2
                                                            : memory_of(options));
  FrontCoded catalog = sort_rows(source, 0, source.num_rows, options, num_threads, &budget, reporter.part(0.0, 0.6));
  auto trie = lay_out(std::move(catalog), options, num_threads, &budget, reporter.part(0.6, 1.0));
  reporter.finish();
  return trie;
}

class ChunkedBuilder::Impl {
 public:
  Impl(const BuildOptions& options, std::string spill_folder)
      : options_(options), spill_folder_(std::move(spill_folder)), budget_(memory_of(options)) {
    check_options(options);
  }

  std::uint64_t num_rows() const { return num_rows_; }

  void add(const SequenceSource& chunk) {
    Reporter reporter(options_, chunk.num_rows);
    check_source(chunk, reporter.part(0.0, 0.0));
    if (chunk.num_rows > kMaxRows - num_rows_) {
      throw std::invalid_argument(chunk.name + ": its " + std::to_string(chunk.num_rows) + " rows and the " +
                                  std::to_string(num_rows_) + " before it are more than the " +
                                  std::to_string(kMaxRows) + " that one trie holds; build several by first tokens");
    }
    const double num_pieces = static_cast<double>((chunk.num_rows + kRowsPerPiece - 1) / kRowsPerPiece);
    std::vector<SortedRun> pieces;
    for (std::uint64_t begin = 0; begin < chunk.num_rows; begin += kRowsPerPiece) {
      const std::uint64_t end = std::min(chunk.num_rows, begin + kRowsPerPiece);
      const double piece = static_cast<double>(pieces.size());
      const Tick tick = reporter.part(piece / num_pieces, (piece + 1) / num_pieces);
      pieces.emplace_back(sort_rows(chunk, begin, end, options_, threads_of(options_), &budget_, tick), spill_folder_);
    }
    // Nothing was taken in so far, so that a chunk that is refused leaves no trace.
    num_rows_ += chunk.num_rows;
    for (SortedRun& piece : pieces) keep(std::move(piece), reporter.part(1.0, 1.0));
    reporter.finish();
  }

  std::shared_ptr<const Trie> finish() {
    if (num_rows_ == 0) throw std::invalid_argument("chunks hold no rows: a catalog needs at least one item");
    Reporter reporter(options_, num_rows_);
    std::vector<SortedRun> runs;
    for (std::vector<SortedRun>& tier : tiers_) std::move(tier.begin(), tier.end(), std::back_inserter(runs));
    tiers_.clear();
    num_rows_ = 0;
    FrontCoded catalog = merged(std::move(runs), reporter.part(0.0, 0.6));
    auto trie = lay_out(std::move(catalog), options_, threads_of(options_), &budget_, reporter.part(0.6, 1.0));
    return_freed_memory();
    reporter.finish();
    return trie;
  }

 private:
  static constexpr std::uint64_t kRowsPerPiece = std::uint64_t{1} << 20;
  static constexpr std::uint64_t kRunsPerTier = 64;

  /// However small the chunks are, runs stay few: as many as a tier may have become one of the next.
  void keep(SortedRun run, const Tick& tick) {
    for (std::uint64_t t = 0;; ++t) {
      if (t == tiers_.size()) tiers_.emplace_back();
      tiers_[t].push_back(std::move(run));
      if (tiers_[t].size() < kRunsPerTier) return;
      run = SortedRun(merged(std::exchange(tiers_[t], {}), tick), spill_folder_);
    }
  }

  FrontCoded merged(std::vector<SortedRun> runs, const Tick& tick) {
    if (runs.size() == 1 && runs[0].is_in_memory()) return std::move(runs[0]).release();
    FrontCoded catalog = merge_runs(runs, threads_of(options_), &budget_, tick);
    runs.clear();
    return_freed_memory();
    return catalog;
  }

  BuildOptions options_;
  std::string spill_folder_;
  MemoryBudget budget_;
  std::uint64_t num_rows_ = 0;
  std::vector<std::vector<SortedRun>> tiers_;
};

ChunkedBuilder::ChunkedBuilder(const BuildOptions& options, std::string spill_folder)
    : impl_(std::make_unique<Impl>(options, std::move(spill_folder))) {}
ChunkedBuilder::~ChunkedBuilder() = default;
void ChunkedBuilder::add(const SequenceSource& chunk) { impl_->add(chunk); }
std::uint64_t ChunkedBuilder::num_rows() const { return impl_->num_rows(); }
std::shared_ptr<const Trie> ChunkedBuilder::finish() { return impl_->finish(); }

}  // namespace gentrie
