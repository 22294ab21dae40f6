#ifndef GENTRIE_TOKEN_INDEX_H_
#define GENTRIE_TOKEN_INDEX_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "gentrie/types.h"

namespace gentrie {

/// The tokens that occur, marked by any number of threads.
class TokenSet {
 public:
  explicit TokenSet(std::int64_t vocab_size) : words_(static_cast<std::uint64_t>(vocab_size) / 64 + 1) {}

  void mark(std::int64_t token) {
    std::atomic<std::uint64_t>& word = words_[static_cast<std::uint64_t>(token) >> 6];
    const std::uint64_t bit = std::uint64_t{1} << (token & 63);
    if (!(word.load(std::memory_order_relaxed) & bit)) word.fetch_or(bit, std::memory_order_relaxed);
  }

  /// Ascending.
  std::vector<Token> tokens() const {
    std::vector<Token> found;
    for (std::uint64_t word = 0; word < words_.size(); ++word) {
      for (std::uint64_t bits = words_[word]; bits != 0; bits &= bits - 1) {
        found.push_back(static_cast<Token>(word * 64 + static_cast<std::uint64_t>(__builtin_ctzll(bits))));
      }
    }
    return found;
  }

 private:
  std::vector<std::atomic<std::uint64_t>> words_;
};

/// Position of a token in a vocabulary that holds it; of one that it lacks, any position in it. Ids of a language
/// model's size are looked up in a table; a table of far greater ones would dwarf the catalog, so those are searched.
class TokenIndex {
 public:
  explicit TokenIndex(const std::vector<Token>& vocabulary)
      : vocabulary_(vocabulary), last_(static_cast<std::ptrdiff_t>(vocabulary.size()) - 1) {
    if (vocabulary.back() >= kMaxTable) return;
    table_.resize(static_cast<std::uint64_t>(vocabulary.back()) + 1);
    for (std::uint32_t i = 0; i < vocabulary.size(); ++i) table_[static_cast<std::uint32_t>(vocabulary[i])] = i;
  }

  std::uint32_t operator[](std::int64_t token) const {
    if (!table_.empty()) {
      return static_cast<std::uint64_t>(token) < table_.size() ? table_[static_cast<std::uint64_t>(token)] : 0;
    }
    const auto found = std::lower_bound(vocabulary_.begin(), vocabulary_.end(), token);
    return static_cast<std::uint32_t>(std::min<std::ptrdiff_t>(found - vocabulary_.begin(), last_));
  }
  bool contains(std::int64_t token) const { return vocabulary_[(*this)[token]] == token; }

 private:
  static constexpr Token kMaxTable = 1 << 22;
  const std::vector<Token>& vocabulary_;
  std::ptrdiff_t last_;
  std::vector<std::uint32_t> table_;
};

}  // namespace gentrie

#endif  // GENTRIE_TOKEN_INDEX_H_
