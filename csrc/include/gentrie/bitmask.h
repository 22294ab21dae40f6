#ifndef GENTRIE_BITMASK_H_
#define GENTRIE_BITMASK_H_

#include <cstdint>

namespace gentrie {

/// Logits [rows, width] of 2, 4 or 8-byte floating point values, and a token bitmask [rows, num_words] whose bit t % 32
/// of word t / 32 says that token t is allowed. Strides in elements.
struct MaskedLogits {
  void* logits = nullptr;
  std::uint64_t width = 0;
  std::int64_t logits_stride = 0;
  std::uint32_t itemsize = 4;
  std::uint64_t minus_infinity = 0;  ///< its bit pattern in this type
  const std::int32_t* bitmask = nullptr;
  std::uint64_t num_words = 0;
  std::int64_t bitmask_stride = 0;
  std::uint64_t vocab_size = 0;  ///< tokens from here on are forbidden
};

/// Sets forbidden logits of the listed rows to -inf, those beyond the bitmask included. Row rows[i] of the logits goes
/// with row rows[i] of the bitmask.
void apply_bitmask(const MaskedLogits& masked, const std::int64_t* rows, std::uint64_t num_rows);

}  // namespace gentrie

#endif  // GENTRIE_BITMASK_H_
