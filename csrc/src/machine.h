#ifndef GENTRIE_MACHINE_H_
#define GENTRIE_MACHINE_H_

#include <cstdint>
#include <vector>

namespace gentrie {

/// Bytes of memory this process may still take: what the system has available and the cgroup allows.
std::uint64_t available_memory();

/// Empties a vector and frees its memory, which assigning {} would keep.
template <typename T>
void free_vector(std::vector<T>* vector) {
  std::vector<T>().swap(*vector);
}

/// Hands memory that was freed back to the system, where the C library would keep it for later.
void return_freed_memory();

}  // namespace gentrie

#endif  // GENTRIE_MACHINE_H_
