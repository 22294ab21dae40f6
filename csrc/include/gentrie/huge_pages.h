#ifndef GENTRIE_HUGE_PAGES_H_
#define GENTRIE_HUGE_PAGES_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>

namespace gentrie {

/// Memory that is read here and there: on huge pages, where the system grants them, a read costs one miss, not two.
template <typename T>
struct HugePageAllocator {
  using value_type = T;
  static constexpr std::size_t kPage = std::size_t{2} << 20;

  HugePageAllocator() = default;
  template <typename U>
  HugePageAllocator(const HugePageAllocator<U>&) {}  // NOLINT: containers convert allocators

  T* allocate(std::size_t count) {
    const std::size_t nbytes = count * sizeof(T);
    const bool is_large = nbytes >= 2 * kPage;
    void* data = is_large ? std::aligned_alloc(kPage, (nbytes + kPage - 1) / kPage * kPage) : std::malloc(nbytes);
    if (data == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (is_large) ::madvise(data, nbytes, MADV_HUGEPAGE);  // a wish: nothing is lost where it is not granted
#endif
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t) { std::free(data); }

  friend bool operator==(HugePageAllocator, HugePageAllocator) { return true; }
  friend bool operator!=(HugePageAllocator, HugePageAllocator) { return false; }
};

}  // namespace gentrie

#endif  // GENTRIE_HUGE_PAGES_H_
