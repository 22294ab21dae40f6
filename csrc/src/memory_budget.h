#ifndef GENTRIE_MEMORY_BUDGET_H_
#define GENTRIE_MEMORY_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "gentrie/types.h"

namespace gentrie {

/// An account of the memory that a build holds, kept so that it stops before it takes more than its limit.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::uint64_t limit) : limit_(limit) {}

  /// \throws MemoryLimitError if `bytes` more would exceed the limit; nothing is taken then
  void take(std::uint64_t bytes, const char* purpose) {
    const std::uint64_t held = held_.fetch_add(bytes);
    if (held + bytes <= limit_) return;
    held_.fetch_sub(bytes);
    throw MemoryLimitError("memory_limit=" + std::to_string(limit_) + " bytes: " + purpose + " needs " +
                           std::to_string(bytes) + " bytes beside the " + std::to_string(held) + " already held");
  }
  void give(std::uint64_t bytes) { held_.fetch_sub(bytes); }

 private:
  std::uint64_t limit_;
  std::atomic<std::uint64_t> held_{0};
};

/// What one part of a build holds; given back at the end of its life. Any number of threads may grow it.
class MemoryShare {
 public:
  MemoryShare() = default;
  explicit MemoryShare(MemoryBudget* budget) : budget_(budget) {}
  MemoryShare(MemoryBudget* budget, std::uint64_t bytes, const char* purpose) : budget_(budget) {
    grow(bytes, purpose);
  }
  MemoryShare(MemoryShare&& other) noexcept : budget_(other.budget_), bytes_(other.bytes_.exchange(0)) {}
  MemoryShare& operator=(MemoryShare&& other) noexcept {
    release();
    budget_ = other.budget_;
    bytes_ = other.bytes_.exchange(0);
    return *this;
  }
  ~MemoryShare() { release(); }

  void grow(std::uint64_t bytes, const char* purpose) {
    budget_->take(bytes, purpose);
    bytes_ += bytes;
  }
  void shrink(std::uint64_t bytes) {
    bytes_ -= bytes;
    budget_->give(bytes);
  }
  void release() {
    if (budget_ != nullptr) budget_->give(bytes_.exchange(0));
  }

 private:
  MemoryBudget* budget_ = nullptr;
  std::atomic<std::uint64_t> bytes_{0};
};

}  // namespace gentrie

#endif  // GENTRIE_MEMORY_BUDGET_H_
