#include "merge_runs.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.h"

namespace gentrie {

namespace {

/// Indices into the merged vocabulary.
using Sequence = std::vector<std::uint32_t>;

/// What a run's indices are in the merged vocabulary.
class Translation {
 public:
  Translation(const std::vector<Token>& from, const std::vector<Token>& to) {
    if (from.size() == to.size()) return;  // then they are the same
    auto at = to.begin();
    for (const Token token : from) {
      at = std::lower_bound(at, to.end(), token);
      table_.push_back(static_cast<std::uint32_t>(at - to.begin()));
    }
  }
  std::uint32_t operator[](std::uint32_t index) const { return table_.empty() ? index : table_[index]; }
  Sequence operator()(Sequence sequence) const {
    for (std::uint32_t& index : sequence) index = (*this)[index];
    return sequence;
  }

 private:
  std::vector<std::uint32_t> table_;
};

/// Walks through the sequences of a run that lie in [from, until), null: from the beginning, to the end.
class Cursor {
 public:
  Cursor(const SortedRun& run, const Translation& translation, const Sequence* from, const Sequence* until)
      : run_(run), translation_(translation), until_(until), tokens_{nullptr, bit_width(run.vocabulary().size() - 1)} {
    // The last segment that begins before `from` may hold it; those that begin before `until` hold some of ours.
    const std::uint64_t first = from == nullptr ? 0 : segments_before(*from);
    end_segment_ = until == nullptr ? run.num_segments() : segments_before(*until);
    open(first > 0 ? first - 1 : 0);
    while (from != nullptr && !at_end() && sequence_ < *from) next();
  }

  bool at_end() const { return at_end_; }
  const Sequence& sequence() const { return sequence_; }
  void append_items(std::vector<std::int64_t>* items) const {
    for (std::uint64_t i = item_; i < item_end_; ++i) items->push_back(segment_->item(i));
  }
  void next() {
    if (++leaf_ == segment_->num_sequences()) return open(segment_index_ + 1);
    read();
  }

 private:
  std::uint64_t segments_before(const Sequence& bound) const {
    std::uint64_t low = 0, high = run_.num_segments();
    while (low < high) {
      const std::uint64_t middle = low + (high - low) / 2;
      if (translation_(run_.first_sequence(middle)) < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  void open(std::uint64_t segment) {
    segment_index_ = segment;
    at_end_ = segment >= end_segment_;
    if (at_end_) return;
    segment_ = run_.segment(segment);
    tokens_.words = segment_->tokens.data();
    leaf_ = 0;
    offset_ = item_end_ = repeat_ = 0;
    read();
  }

  void read() {
    const std::uint32_t shared = segment_->shared[leaf_], stored = segment_->stored[leaf_];
    sequence_.resize(shared + stored);
    for (std::uint32_t i = 0; i < stored; ++i) sequence_[shared + i] = translation_[tokens_[offset_ + i]];
    offset_ += stored;
    item_ = item_end_++;
    const std::vector<std::uint32_t>& repeats = segment_->repeats;
    for (; repeat_ < repeats.size() && repeats[repeat_] == leaf_; ++repeat_) ++item_end_;
    // Only the last segment can reach beyond the end.
    at_end_ = until_ != nullptr && segment_index_ + 1 == end_segment_ && !(sequence_ < *until_);
  }

  const SortedRun& run_;
  const Translation& translation_;
  const Sequence* until_;
  std::uint64_t end_segment_ = 0;
  bool at_end_ = false;
  PackedView tokens_;
  std::shared_ptr<const Segment> segment_;
  std::uint64_t segment_index_ = 0;
  std::uint32_t leaf_ = 0;
  std::uint64_t offset_ = 0;               ///< of the next sequence's tokens
  std::uint64_t item_ = 0, item_end_ = 0;  ///< items of the sequence
  std::uint64_t repeat_ = 0;               ///< next entry of the segment's repeats
  Sequence sequence_;
};

/// What was merged between two bounds.
struct Part {
  std::vector<Segment> segments;
  Sequence first, last;
  std::int64_t last_item = 0, first_item = 0;  ///< one of each, for messages
};

std::uint32_t shared_by(const Sequence& a, const Sequence& b) {
  const std::uint64_t limit = std::min(a.size(), b.size());
  return static_cast<std::uint32_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(limit), b.begin()).first - a.begin());
}

void refuse_prefix(const Sequence& before, std::int64_t item_before, std::uint32_t shared, std::int64_t item) {
  if (shared < before.size()) return;
  throw std::invalid_argument("the sequence of item " + std::to_string(item_before) + " (" +
                              std::to_string(before.size()) + " tokens) is a prefix of that of item " +
                              std::to_string(item) +
                              "; pass end_token_id so that every sequence has an end of its own");
}

template <typename Checkpoint>
Part merge_part(const std::vector<SortedRun>& runs, const std::vector<Translation>& translations, const Sequence* from,
                const Sequence* until, SegmentWriter writer, const Checkpoint& checkpoint) {
  std::vector<std::unique_ptr<Cursor>> heap;
  for (std::uint64_t r = 0; r < runs.size(); ++r) {
    auto cursor = std::make_unique<Cursor>(runs[r], translations[r], from, until);
    if (!cursor->at_end()) heap.push_back(std::move(cursor));
  }
  const auto after = [](const std::unique_ptr<Cursor>& a, const std::unique_ptr<Cursor>& b) {
    return b->sequence() < a->sequence();
  };
  std::make_heap(heap.begin(), heap.end(), after);

  Part part;
  Sequence current;
  std::vector<std::int64_t> items;
  while (!heap.empty()) {
    current = heap.front()->sequence();
    items.clear();
    std::uint32_t sources = 0;
    while (!heap.empty() && heap.front()->sequence() == current) {
      std::pop_heap(heap.begin(), heap.end(), after);
      heap.back()->append_items(&items);
      ++sources;
      heap.back()->next();
      if (heap.back()->at_end()) {
        heap.pop_back();
      } else {
        std::push_heap(heap.begin(), heap.end(), after);
      }
    }
    if (sources > 1) std::sort(items.begin(), items.end());

    std::uint32_t shared = 0;
    if (part.last.empty()) {
      part.first = current;
      part.first_item = items.front();
    } else {
      shared = shared_by(part.last, current);
      refuse_prefix(part.last, part.last_item, shared, items.front());
    }
    if (writer.is_full()) {
      part.segments.push_back(writer.finish());
      checkpoint();
    }
    const std::uint32_t stored_from = writer.begin_sequence(shared, static_cast<std::uint32_t>(current.size()));
    for (std::uint64_t i = stored_from; i < current.size(); ++i) writer.push(current[i]);
    for (const std::int64_t item : items) writer.add_item(item);
    part.last.swap(current);
    part.last_item = items.front();
  }
  if (!part.last.empty()) part.segments.push_back(writer.finish());
  return part;
}

/// Sequences that cut the runs into parts of about half a million, none of them twice.
std::vector<Sequence> choose_bounds(const std::vector<SortedRun>& runs, const std::vector<Translation>& translations) {
  constexpr std::uint64_t kSegmentsPerPart = (std::uint64_t{1} << 19) / Segment::kMaxSequences;
  std::vector<Sequence> firsts, bounds;
  for (std::uint64_t r = 0; r < runs.size(); ++r) {
    for (std::uint64_t s = 0; s < runs[r].num_segments(); ++s) {
      firsts.push_back(translations[r](runs[r].first_sequence(s)));
    }
  }
  std::sort(firsts.begin(), firsts.end());
  for (std::uint64_t i = kSegmentsPerPart; i < firsts.size(); i += kSegmentsPerPart) {
    if (bounds.empty() || bounds.back() < firsts[i]) bounds.push_back(firsts[i]);
  }
  return bounds;
}

}  // namespace

FrontCoded merge_runs(const std::vector<SortedRun>& runs, int num_threads, MemoryBudget* budget, const Tick& tick) {
  FrontCoded merged(budget);
  for (const SortedRun& run : runs) {
    std::vector<Token> both;
    std::set_union(merged.vocabulary.begin(), merged.vocabulary.end(), run.vocabulary().begin(), run.vocabulary().end(),
                   std::back_inserter(both));
    merged.vocabulary.swap(both);
    merged.max_length = std::max(merged.max_length, run.max_length());
  }
  std::vector<Translation> translations;
  for (const SortedRun& run : runs) translations.emplace_back(run.vocabulary(), merged.vocabulary);

  const std::vector<Sequence> bounds = choose_bounds(runs, translations);
  const std::uint64_t num_parts = bounds.size() + 1;
  std::vector<Part> parts(num_parts);
  parallel_for(
      num_parts, num_threads, 1,
      [&](std::uint64_t p, std::uint64_t, const auto& checkpoint) {
        const Sequence *from = p == 0 ? nullptr : &bounds[p - 1], *until = p + 1 == num_parts ? nullptr : &bounds[p];
        parts[p] = merge_part(runs, translations, from, until, {merged.token_bits(), merged.max_length}, checkpoint);
        for (const Segment& segment : parts[p].segments) merged.memory.grow(segment.nbytes(), "merged sequences");
      },
      [&](std::uint64_t done) { tick(static_cast<double>(done) / static_cast<double>(num_parts)); });

  const Part* before = nullptr;
  for (Part& part : parts) {
    if (part.segments.empty()) continue;
    if (before != nullptr) {
      part.segments.front().first_shared = shared_by(before->last, part.first);
      refuse_prefix(before->last, before->last_item, part.segments.front().first_shared, part.first_item);
    }
    before = &part;
    std::move(part.segments.begin(), part.segments.end(), std::back_inserter(merged.segments));
  }
  return merged;
}

}  // namespace gentrie
