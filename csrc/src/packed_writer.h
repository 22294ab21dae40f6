#ifndef GENTRIE_PACKED_WRITER_H_
#define GENTRIE_PACKED_WRITER_H_

#include <cstdint>

namespace gentrie {

/// Appends packed values (see PackedView) at consecutive indices from `first` on. Words at either end may be shared
/// with another writer, so those are merged atomically; the words must be zero before.
class PackedWriter {
 public:
  PackedWriter(std::uint32_t* words, std::uint32_t bits, std::uint64_t first)
      : word_(words + first * bits / 32), bits_(bits), filled_(static_cast<std::uint32_t>(first * bits % 32)) {}
  ~PackedWriter() {
    if (filled_ > 0) merge(static_cast<std::uint32_t>(window_));
  }
  PackedWriter(const PackedWriter&) = delete;
  PackedWriter& operator=(const PackedWriter&) = delete;

  void push(std::uint32_t value) {
    window_ |= std::uint64_t{value} << filled_;
    filled_ += bits_;
    if (filled_ < 32) return;
    if (is_first_) {
      merge(static_cast<std::uint32_t>(window_));
      is_first_ = false;
    } else {
      *word_ = static_cast<std::uint32_t>(window_);
    }
    ++word_;
    window_ >>= 32;
    filled_ -= 32;
  }

 private:
  void merge(std::uint32_t bits) { __atomic_fetch_or(word_, bits, __ATOMIC_RELAXED); }

  std::uint32_t* word_;
  std::uint32_t bits_;
  std::uint32_t filled_;
  std::uint64_t window_ = 0;
  bool is_first_ = true;
};

}  // namespace gentrie

#endif  // GENTRIE_PACKED_WRITER_H_
