#include "gentrie/filter.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "gentrie/batch.h"
#include "item_index.h"
#include "parallel.h"
#include "poll.h"

namespace gentrie {

namespace {

constexpr std::uint64_t kWordsPerChunk = 1 << 10;

std::uint64_t num_words(std::uint64_t bits) { return bits / 64 + 1; }

bool test(const ItemFilter::Words& words, std::uint64_t bit) { return (words[bit >> 6] >> (bit & 63)) & 1; }

/// Calls visit(w) for the words [0, count), in parallel.
template <typename Visit>
void for_each_word(std::uint64_t count, int num_threads, const Visit& visit, const Poll& poll) {
  parallel_for(
      count, num_threads, kWordsPerChunk,
      [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t w = begin; w < end; ++w) visit(w);
      },
      as_tick(poll));
}

/// Bit i is set where byte i is not 0.
std::uint64_t packed_byte_signs(const std::uint8_t* bytes) {
  std::uint64_t x;
  std::memcpy(&x, bytes, sizeof x);
  x |= x >> 4;  // into the lowest bit of each byte; what comes from the byte above stays out of it
  x |= x >> 2;
  x |= x >> 1;
  return ((x & 0x0101010101010101) * 0x0102040810204080) >> 56;
}

/// One bit for each of `count` bytes.
ItemFilter::Words packed(const std::uint8_t* mask, std::uint64_t count, int num_threads, const Poll& poll) {
  ItemFilter::Words words(num_words(count));
  const auto pack_word = [&](std::uint64_t w) {
    const std::uint8_t* bytes = mask + w * 64;
    const std::uint64_t left = std::min<std::uint64_t>(64, count - w * 64);
    std::uint64_t word = 0, at = 0;
    for (; at + 8 <= left; at += 8) word |= packed_byte_signs(bytes + at) << at;
    for (; at < left; ++at) word |= std::uint64_t{bytes[at] != 0} << at;
    words[w] = word;
  };
  for_each_word(words.size(), num_threads, pack_word, poll);
  return words;
}

/// For each entry of the leaf-to-item table the bit that its item id names.
template <typename Id>
ItemFilter::Words gathered(const Id* ids, std::uint64_t num_items, const ItemFilter::Words& bits,
                           std::uint64_t num_bits, int num_threads, const Poll& poll) {
  ItemFilter::Words words(num_words(num_items));
  const auto gather_word = [&](std::uint64_t w) {
    std::uint64_t word = 0;
    const std::uint64_t left = std::min<std::uint64_t>(64, num_items - w * 64);
    for (std::uint64_t i = 0; i < left; ++i) {
      const std::int64_t id = __atomic_load_n(ids + w * 64 + i, __ATOMIC_RELAXED);  // a mapped file may change
      if (static_cast<std::uint64_t>(id) >= num_bits) {                             // negative ones too
        throw std::invalid_argument("item_filter: a boolean array is indexed by item id; it has " +
                                    std::to_string(num_bits) + " entries, the catalog holds item id " +
                                    std::to_string(id));
      }
      word |= ((bits[static_cast<std::uint64_t>(id) >> 6] >> (id & 63)) & 1) << i;
    }
    words[w] = word;
  };
  for_each_word(words.size(), num_threads, gather_word, poll);
  return words;
}

/// Sorts numbers below 2^bits, bits at most 33, digit by digit: a thousand take a fifth of the time that comparing
/// them does. All digits are counted in one pass.
void sort_few(std::vector<std::uint32_t>* values, std::uint32_t bits) {
  constexpr std::uint32_t kDigits = 3, kMaxRadix = 1 << 11;
  const std::uint32_t digit_bits = (bits + kDigits - 1) / kDigits, radix = 1U << digit_bits;
  std::array<std::array<std::uint32_t, kMaxRadix>, kDigits> starts;
  for (auto& digit : starts) std::fill_n(digit.begin(), radix, 0);
  const auto digit_of = [=](std::uint32_t value, std::uint32_t digit) {
    return (value >> (digit * digit_bits)) & (radix - 1);
  };
  for (const std::uint32_t value : *values) {
    for (std::uint32_t digit = 0; digit < kDigits; ++digit) ++starts[digit][digit_of(value, digit)];
  }
  std::vector<std::uint32_t> sorted(values->size());
  for (std::uint32_t digit = 0; digit < kDigits; ++digit) {
    std::uint32_t before = 0;
    for (std::uint32_t i = 0; i < radix; ++i) before += std::exchange(starts[digit][i], before);
    for (const std::uint32_t value : *values) sorted[starts[digit][digit_of(value, digit)]++] = value;
    values->swap(sorted);
  }
}

/// Fills the rank directory: each chunk's ones are counted, then every chunk is indexed from those before it.
void index(ItemFilter::Words* words, int num_threads) {
  std::vector<std::uint64_t> ones((words->size() + kWordsPerChunk - 1) / kWordsPerChunk + 1);
  parallel_for(words->size(), num_threads, kWordsPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
    std::uint64_t& sum = ones[begin / kWordsPerChunk + 1];
    for (std::uint64_t w = begin; w < end; ++w) sum += static_cast<std::uint64_t>(__builtin_popcountll((*words)[w]));
  });
  std::partial_sum(ones.begin(), ones.end(), ones.begin());
  parallel_for(words->size(), num_threads, kWordsPerChunk, [&](std::uint64_t begin, std::uint64_t end) {
    RankedBitmap::index(words->data() + begin, end - begin, ones[begin / kWordsPerChunk]);
  });
}

}  // namespace

ItemFilter::Ptr ItemFilter::make(std::shared_ptr<const Trie> trie, Words entry_words, int num_threads,
                                 const Poll& poll) {
  const auto resident = std::make_shared<Resident>();
  const TrieView& view = trie->view();
  resident->trie = std::move(trie);
  Words& leaves = resident->leaf_words;
  leaves.resize(RankedBitmap::num_words(view.num_leaves));
  if (view.item_indptr == nullptr) {
    for_each_word(
        leaves.size(), num_threads,
        [&](std::uint64_t w) { leaves[w] = static_cast<std::uint32_t>(entry_words[w / 2] >> (w % 2 * 32)); }, poll);
  } else {
    StepPoll polled(poll);
    std::uint64_t from = 0;  // no entry is looked at twice, whatever a damaged file says
    for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
      const auto [begin, end] = view.items_of_leaf(leaf);
      for (std::uint64_t entry = std::max(begin, from); entry < end; ++entry) {
        if (!test(entry_words, entry)) continue;
        leaves[leaf >> 5] |= std::uint64_t{1} << (leaf & 31);
        break;
      }
      from = std::max(from, end);
      polled();
    }
    for (const std::uint64_t word : entry_words) {
      resident->num_items += static_cast<std::uint64_t>(__builtin_popcountll(word));
    }
    resident->entry_words = std::move(entry_words);
  }
  index(&leaves, num_threads);
  const Ptr filter(new ItemFilter(resident));
  if (view.item_indptr == nullptr) resident->num_items = filter->num_sequences();
  return filter;
}

ItemFilter::Ptr ItemFilter::from_item_ids(std::shared_ptr<const Trie> trie, const std::int64_t* ids,
                                          std::uint64_t count, const Poll& poll) {
  Words words(num_words(trie->view().num_items));
  StepPoll polled(poll);
  trie->item_index(poll).for_each_entry(ids, count, [&](std::uint32_t entry) {
    words[entry >> 6] |= std::uint64_t{1} << (entry & 63);
    polled();
  });
  return make(std::move(trie), std::move(words), 1, poll);
}

ItemFilter::Ptr ItemFilter::from_mask(std::shared_ptr<const Trie> trie, const std::uint8_t* mask, std::uint64_t count,
                                      int num_threads, const Poll& poll) {
  const TrieView& view = trie->view();
  // An eighth of the size stays in the cache where the bytes would not.
  const Words bits = packed(mask, count, num_threads, poll);
  Words words =
      view.item_id_bytes == 4
          ? gathered(static_cast<const std::int32_t*>(view.item_ids), view.num_items, bits, count, num_threads, poll)
          : gathered(static_cast<const std::int64_t*>(view.item_ids), view.num_items, bits, count, num_threads, poll);
  return make(std::move(trie), std::move(words), num_threads, poll);
}

ItemFilter::Ptr ItemFilter::from_leaf_order(std::shared_ptr<const Trie> trie, const std::uint8_t* mask,
                                            std::uint64_t count, int num_threads, const Poll& poll) {
  if (count != trie->view().num_items) {
    throw std::invalid_argument("item_filter: a boolean array in leaf order has " + std::to_string(count) +
                                " entries, the catalog holds " + std::to_string(trie->view().num_items) + " items");
  }
  return make(std::move(trie), packed(mask, count, num_threads, poll), num_threads, poll);
}

ItemFilter::Ptr ItemFilter::deny(const std::int64_t* ids, std::uint64_t count, const Poll& poll) const {
  const std::shared_ptr<ItemFilter> filter(new ItemFilter(resident_));
  filter->num_denied_ids_ = num_denied_ids_ + count;
  if (filter->num_denied_ids_ > kMaxDenied) {
    throw std::invalid_argument("item_filter: " + std::to_string(filter->num_denied_ids_) +
                                " denied items, more than the " + std::to_string(kMaxDenied) +
                                " that need no bitmap of their own");
  }
  const TrieView& view = trie().view();
  const ItemIndex& index = trie().item_index(poll);
  std::vector<std::uint32_t>& denied = filter->denied_entries_;
  denied.reserve(denied_entries_.size() + count);
  denied = denied_entries_;
  index.for_each_entry(ids, count, [&](std::uint32_t entry) {
    prefetch_resident(entry);
    index.prefetch_leaf(entry);
    denied.push_back(entry);
  });
  std::size_t num_denied = 0;
  for (const std::uint32_t entry : denied) {  // without branches, which would wait for the bitmap one after the other
    denied[num_denied] = entry;
    num_denied += static_cast<std::size_t>(is_resident(entry));
  }
  denied.resize(num_denied);
  sort_few(&denied, bit_width(view.num_items));
  denied.erase(std::unique(denied.begin(), denied.end()), denied.end());
  if (view.item_indptr == nullptr) {
    filter->closed_leaves_ = denied;
    return filter;
  }
  std::vector<std::uint32_t>& closed = filter->closed_leaves_;
  std::uint64_t from = 0;  // no entry is looked at twice, whatever a damaged file says
  for (std::size_t first = 0, last; first < denied.size(); first = last) {
    const std::uint32_t leaf = std::min(index.leaf_of(denied[first]), view.num_leaves - 1);
    const auto [begin, end] = view.items_of_leaf(leaf);
    last = first + 1;
    while (last < denied.size() && denied[last] < end) ++last;
    std::size_t left = last - first;  // denied ones to find among the leaf's before its other items are all filtered
    std::uint64_t entry = std::max(begin, from);
    from = std::max(from, end);
    while (entry < end && (!is_resident(entry) || left-- > 0)) ++entry;
    if (entry == end && (closed.empty() || closed.back() != leaf)) closed.push_back(leaf);
  }
  return filter;
}

ItemFilter::Words ItemFilter::entry_words() const {
  Words words = resident_->entry_words;
  if (words.empty()) {
    const Words& leaves = resident_->leaf_words;
    words.resize(num_words(trie().view().num_items));
    for (std::uint64_t w = 0; w < leaves.size(); ++w) {
      words[w / 2] |= (leaves[w] & 0xFFFFFFFF) << (w % 2 * 32);
    }
  }
  for (const std::uint32_t entry : denied_entries_) words[entry >> 6] &= ~(std::uint64_t{1} << (entry & 63));
  return words;
}

template <typename Operation>
ItemFilter::Ptr ItemFilter::combine(const ItemFilter& other, const Operation& operation, const Poll& poll) const {
  if (!is_same_catalog(trie(), other.trie())) {
    throw std::invalid_argument("item_filter: one belongs to the trie " + trie().fingerprint() + ", the other to " +
                                other.trie().fingerprint());
  }
  Words words = entry_words();
  const Words others = other.entry_words();
  std::transform(words.begin(), words.end(), others.begin(), words.begin(), operation);
  return make(resident_->trie, std::move(words), 1, poll);
}

ItemFilter::Ptr ItemFilter::intersection(const ItemFilter& other, const Poll& poll) const {
  return combine(other, [](std::uint64_t a, std::uint64_t b) { return a & b; }, poll);
}

ItemFilter::Ptr ItemFilter::union_with(const ItemFilter& other, const Poll& poll) const {
  return combine(other, [](std::uint64_t a, std::uint64_t b) { return a | b; }, poll);
}

ItemFilter::Ptr ItemFilter::difference(const ItemFilter& other, const Poll& poll) const {
  return combine(other, [](std::uint64_t a, std::uint64_t b) { return a & ~b; }, poll);
}

ItemFilter::Ptr ItemFilter::complement(const Poll& poll) const {
  Words words = entry_words();
  for (std::uint64_t& word : words) word = ~word;
  words.back() &= (std::uint64_t{1} << (trie().view().num_items & 63)) - 1;  // no entries beyond the last
  return make(resident_->trie, std::move(words), 1, poll);
}

std::uint64_t ItemFilter::nbytes() const {
  return (resident_->leaf_words.size() + resident_->entry_words.size()) * sizeof(std::uint64_t) +
         (denied_entries_.size() + closed_leaves_.size()) * sizeof(std::uint32_t);
}

std::uint32_t ItemFilter::rank(std::uint32_t leaf) const {
  const std::uint32_t allowed = RankedBitmap{resident_->leaf_words.data()}.rank(leaf);
  if (closed_leaves_.empty()) return allowed;
  const auto at = std::lower_bound(closed_leaves_.begin(), closed_leaves_.end(), leaf);
  return allowed - static_cast<std::uint32_t>(at - closed_leaves_.begin());
}

bool ItemFilter::allows_leaf(std::uint32_t leaf) const {
  return RankedBitmap{resident_->leaf_words.data()}.test(leaf) &&
         !std::binary_search(closed_leaves_.begin(), closed_leaves_.end(), leaf);
}

bool ItemFilter::allows_entry(std::uint64_t entry) const {
  return is_resident(entry) && !std::binary_search(denied_entries_.begin(), denied_entries_.end(), entry);
}

std::uint32_t ItemFilter::num_items_of(std::uint32_t leaf) const {
  const auto [begin, end] = trie().view().items_of_leaf(leaf);
  std::uint32_t allowed = 0;
  for (std::uint64_t entry = begin; entry < end; ++entry) allowed += allows_entry(entry) ? 1 : 0;
  return allowed;
}

void ItemFilter::append_open_edges(std::uint32_t node, std::vector<Token>* tokens) const {
  const TrieView& view = trie().view();
  const EdgeRange edges = view.edges(node);
  if (edges.size() == 0) return;
  // The leaves of one edge end where those of the next one of its kind begin.
  struct Chain {
    std::uint32_t leaf, before;
  };
  const auto chain = [&](std::uint32_t leaf) { return Chain{leaf, rank(std::min(leaf, view.num_leaves))}; };
  Chain own = chain(view.leaf_begin[node]), below = chain(view.leaf_begin_of_children(node));
  std::uint32_t child = view.next_node(edges.begin);
  for (std::uint32_t edge = edges.begin; edge < edges.end; ++edge) {
    const bool to_node = view.edge_to_node.test(edge);
    Chain& at = to_node ? below : own;
    const std::uint32_t before = at.before;
    at = chain(at.leaf + (to_node ? view.leaves_below_node(child++) : 1));
    if (at.before != before) tokens->push_back(view.token_at(view.edge_token_index(edge)));
  }
}

void next_tokens_batch(const ItemFilter& filter, const State* states, std::uint64_t count, std::vector<Token>* tokens,
                       std::vector<std::int64_t>* indptr, const Poll& poll) {
  const TrieView& view = filter.trie().view();
  StepPoll polled(poll);
  indptr->reserve(indptr->size() + count + 1);
  indptr->push_back(static_cast<std::int64_t>(tokens->size()));
  for (std::uint64_t i = 0; i < count; ++i) {
    const State state = checked_state(view, states, i);
    const std::uint64_t before = tokens->size();
    if (state >= 0 && TrieView::remaining_of(state) > 0) {
      if (filter.count(view.leaves_below(state)) > 0) tokens->push_back(view.next_run_token(state));
    } else if (state >= 0 && !view.is_leaf(state)) {
      filter.append_open_edges(static_cast<std::uint32_t>(TrieView::target_of(state)), tokens);
    }
    indptr->push_back(static_cast<std::int64_t>(tokens->size()));
    polled(1 + tokens->size() - before);
  }
}

void count_below(const ItemFilter& filter, const State* states, std::uint64_t count, std::int64_t* out,
                 const Poll& poll) {
  const TrieView& view = filter.trie().view();
  StepPoll polled(poll);
  for (std::uint64_t i = 0; i < count; ++i, polled()) {
    const State state = checked_state(view, states, i);
    out[i] = state < 0 ? 0 : filter.count(view.leaves_below(state));
  }
}

}  // namespace gentrie
