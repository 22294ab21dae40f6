// A preloaded allocator that keeps large blocks instead of giving them back to the system, as jemalloc, mimalloc and
// torch's CUDA allocator do; glibc maps and faults in every tensor of this size anew. Compiled and preloaded by
// benchmarks/processor.py. It serves aligned_alloc-like calls only, which is what torch allocates CPU tensors with.

#include <dlfcn.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>

namespace {

constexpr std::size_t kLarge = std::size_t{1} << 18;
constexpr std::size_t kPage = 4096;
constexpr int kMaxBlocks = 256;

struct Block {
  void* data;
  std::size_t size;
  bool in_use;
};

// Trivially destructible: free() is called until the very end of the process.
std::mutex& mutex() {
  alignas(std::mutex) static unsigned char storage[sizeof(std::mutex)];
  return *reinterpret_cast<std::mutex*>(storage);
}
Block blocks[kMaxBlocks];
int num_blocks = 0;

void* take(std::size_t size) {
  size = (size + kPage - 1) / kPage * kPage;
  const std::lock_guard<std::mutex> lock(mutex());
  for (int i = 0; i < num_blocks; ++i) {
    if (!blocks[i].in_use && blocks[i].size == size) {
      blocks[i].in_use = true;
      return blocks[i].data;
    }
  }
  if (num_blocks == kMaxBlocks) return nullptr;
  void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  blocks[num_blocks++] = {data, size, true};
  return data;
}

bool give_back(void* data) {
  if (data == nullptr || reinterpret_cast<std::uintptr_t>(data) % kPage != 0) return false;
  const std::lock_guard<std::mutex> lock(mutex());
  for (int i = 0; i < num_blocks; ++i) {
    if (blocks[i].data == data && blocks[i].in_use) {
      blocks[i].in_use = false;
      return true;
    }
  }
  return false;
}

template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  static auto* const original = next<int(void**, std::size_t, std::size_t)>("posix_memalign");
  if (size >= kLarge && alignment <= kPage) {
    if (void* const data = take(size)) {
      *out = data;
      return 0;
    }
  }
  return original(out, alignment, size);
}

extern "C" void free(void* data) {
  static auto* const original = next<void(void*)>("free");
  if (!give_back(data)) original(data);
}
