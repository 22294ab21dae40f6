#ifndef GENTRIE_ARRAY_BUFFER_H_
#define GENTRIE_ARRAY_BUFFER_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "gentrie/trie.h"

namespace gentrie {

/// Memory of a trie that was built (not mapped): one 64-byte aligned, zero-padded block an array.
class ArrayStorage {
 public:
  void* allocate_bytes(ArrayId id, std::uint64_t count, std::uint32_t itemsize, bool is_signed) {
    ArrayRef& ref = arrays_[static_cast<std::size_t>(id)];
    ref = {nullptr, count, itemsize, is_signed};
    // calloc takes large blocks zeroed from the system: their pages are first touched by whichever thread fills them.
    void* block = std::calloc(ref.padded_nbytes() + kAlignment, 1);
    if (block == nullptr) throw std::bad_alloc();
    blocks_.emplace_back(block);
    void* data =
        reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(block) + kAlignment - 1) & ~(kAlignment - 1));
    ref.data = data;
    return data;
  }

  const ArrayTable& arrays() const { return arrays_; }

 private:
  static constexpr std::uintptr_t kAlignment = 64;
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  ArrayTable arrays_;
  std::vector<std::unique_ptr<void, Free>> blocks_;
};

}  // namespace gentrie

#endif  // GENTRIE_ARRAY_BUFFER_H_
