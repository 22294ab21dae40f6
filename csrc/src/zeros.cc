#include "gentrie/zeros.h"

#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace gentrie {

void write_zeros(void* data, std::uint64_t nbytes) {
#ifdef __SSE2__
  constexpr std::uint64_t kLine = 64, kMuch = std::uint64_t{4} << 20;  // less may be read again from a cache
  if (nbytes >= kMuch) {
    auto* at = static_cast<char*>(data);
    const std::uint64_t head = (kLine - reinterpret_cast<std::uintptr_t>(at) % kLine) % kLine;
    std::memset(at, 0, head);
    at += head;
    nbytes -= head;
    const __m128i zero = _mm_setzero_si128();
    for (; nbytes >= kLine; at += kLine, nbytes -= kLine) {
      auto* line = reinterpret_cast<__m128i*>(at);
      for (int i = 0; i < 4; ++i) _mm_stream_si128(line + i, zero);
    }
    _mm_sfence();
    data = at;
  }
#endif
  std::memset(data, 0, nbytes);
}

}  // namespace gentrie
