#ifndef GENTRIE_HUGE_PAGES_H_
#define GENTRIE_HUGE_PAGES_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace gentrie {

/// Memory that is read here and there: on huge pages, where the system grants them, a read costs one miss, not two.
/// Large blocks come from the system itself: a heap hands out memory whose small pages have been touched before, and
/// those stay small.
template <typename T>
struct HugePageAllocator {
  using value_type = T;
  static constexpr std::size_t kPage = std::size_t{2} << 20;

  HugePageAllocator() = default;
  template <typename U>
  HugePageAllocator(const HugePageAllocator<U>&) {}  // NOLINT: containers convert allocators

  T* allocate(std::size_t count) {
    const std::size_t nbytes = count * sizeof(T);
    void* data = is_large(nbytes) ? map(mapped_nbytes(nbytes)) : std::malloc(nbytes);
    if (data == nullptr) throw std::bad_alloc();
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t count) {
    const std::size_t nbytes = count * sizeof(T);
    if (is_large(nbytes)) {
      ::munmap(data, mapped_nbytes(nbytes));
    } else {
      std::free(data);
    }
  }

  friend bool operator==(HugePageAllocator, HugePageAllocator) { return true; }
  friend bool operator!=(HugePageAllocator, HugePageAllocator) { return false; }

 private:
  static bool is_large(std::size_t nbytes) { return nbytes >= 2 * kPage; }
  static std::size_t mapped_nbytes(std::size_t nbytes) { return (nbytes + kPage - 1) / kPage * kPage; }
  /// Aligned to a page; null where the system has no memory left.
  static void* map(std::size_t nbytes) {
    void* block = ::mmap(nullptr, nbytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return nullptr;
    // Of the page too many, what lies before and behind the aligned ones goes back.
    const std::size_t before = (kPage - reinterpret_cast<std::uintptr_t>(block) % kPage) % kPage;
    std::byte* data = static_cast<std::byte*>(block) + before;
    if (before > 0) ::munmap(block, before);
    ::munmap(data + nbytes, kPage - before);
#ifdef MADV_HUGEPAGE
    ::madvise(data, nbytes, MADV_HUGEPAGE);  // a wish: nothing is lost where it is not granted
#endif
    return data;
  }
};

}  // namespace gentrie

#endif  // GENTRIE_HUGE_PAGES_H_
