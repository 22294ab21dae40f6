#ifndef GENTRIE_ARRAY_BUFFER_H_
#define GENTRIE_ARRAY_BUFFER_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "gentrie/trie.h"

namespace gentrie {

/// Memory of a trie that was built (not mapped): one 64-byte aligned, zero-padded block an array.
class ArrayStorage {
 public:
  template <typename T>
  T* allocate(ArrayId id, std::uint64_t count, bool is_signed = false) {
    return static_cast<T*>(allocate_bytes(id, count, sizeof(T), is_signed));
  }

  void* allocate_bytes(ArrayId id, std::uint64_t count, std::uint32_t itemsize, bool is_signed) {
    ArrayRef& ref = arrays_[static_cast<std::size_t>(id)];
    ref = {nullptr, count, itemsize, is_signed};
    const std::uint64_t nbytes = ref.padded_nbytes();
    void* data = ::operator new(nbytes, std::align_val_t{64});
    blocks_.emplace_back(data);
    std::memset(data, 0, nbytes);
    ref.data = data;
    return data;
  }

  const ArrayTable& arrays() const { return arrays_; }

 private:
  struct Free {
    void operator()(void* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  ArrayTable arrays_;
  std::vector<std::unique_ptr<void, Free>> blocks_;
};

}  // namespace gentrie

#endif  // GENTRIE_ARRAY_BUFFER_H_
