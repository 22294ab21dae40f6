#include "log_sum_exp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace gentrie {

namespace {

constexpr std::uint64_t kBlock = 1024;  // stays in the first cache between its two passes
constexpr std::uint64_t kLanes = 8;
// Vectors of the compiler's: left to itself it unrolls the lanes instead. Without AVX each is two of SSE.
using Floats [[gnu::vector_size(kLanes * sizeof(float))]] = float;
using Bits [[gnu::vector_size(kLanes * sizeof(std::int32_t))]] = std::int32_t;

struct Block {
  float highest;  ///< NaN where a value is
  double sum;     ///< of exp(value - highest)
};

// By reference: how such vectors are passed differs with AVX.
[[gnu::always_inline]] inline void load(const float* values, Floats& vector) {
  std::memcpy(&vector, values, sizeof vector);
}

/// sums += exp(x) for -infinity <= x <= 0, to two units in the last place; below exp(-87) it stays there.
[[gnu::always_inline]] inline void add_exp_of_negative(const Floats& value, Floats& sums) {
  const Floats shift = Floats{} + 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, held by the low bits
  const Floats least = Floats{} - 87.0F;
  const Floats x = value < least ? least : value;
  const Floats shifted = x * 1.44269504F + shift;
  const Floats power = shifted - shift;
  const Floats rest = (x - power * 0.693359375F) - power * -2.12194440e-4F;
  Floats series = rest * 1.9875691500e-4F + 1.3981999507e-3F;
  series = series * rest + 8.3334519073e-3F;
  series = series * rest + 4.1665795894e-2F;
  series = series * rest + 1.6666665459e-1F;
  series = series * rest + 5.0000001201e-1F;
  const Floats fraction = series * rest * rest + rest + 1.0F;
  Bits bits, base;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&base, &shift, sizeof base);
  const Bits exponent = (bits - base + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  sums += fraction * scale;
}

[[gnu::always_inline]] inline Block block_of(const float* values, std::uint64_t count) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  float padded[kLanes];  // the last ones, which fill no vector
  std::fill_n(padded, kLanes, kLowest);
  const std::uint64_t whole = count / kLanes * kLanes;
  std::copy(values + whole, values + count, padded);
  Floats value, highest;
  load(padded, highest);
  Bits is_nan = highest != highest;
  for (std::uint64_t i = 0; i < whole; i += kLanes) {
    load(values + i, value);
    highest = value > highest ? value : highest;
    is_nan |= value != value;
  }
  float top = kLowest;
  for (std::uint64_t lane = 0; lane < kLanes; ++lane) {
    if (is_nan[lane] != 0) return {std::numeric_limits<float>::quiet_NaN(), 0};
    top = std::max(top, highest[lane]);
  }
  if (std::isinf(top)) return {top, 0};
  Floats sums{};
  load(padded, value);
  add_exp_of_negative(value - top, sums);
  for (std::uint64_t i = 0; i < whole; i += kLanes) {
    load(values + i, value);
    add_exp_of_negative(value - top, sums);
  }
  double sum = 0;
  for (std::uint64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return {top, sum};
}

using BlockFunction = Block (*)(const float*, std::uint64_t);

Block plain_block(const float* values, std::uint64_t count) { return block_of(values, count); }

#if defined(__x86_64__) && defined(__GNUC__)
[[gnu::target("avx2,fma")]] Block avx2_block(const float* values, std::uint64_t count) {
  return block_of(values, count);
}

BlockFunction best_block() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2_block : plain_block;
}
#else
BlockFunction best_block() { return plain_block; }
#endif

}  // namespace

double log_sum_exp(const float* values, std::uint64_t count) {
  static const BlockFunction block_function = best_block();
  double highest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (std::uint64_t begin = 0; begin < count; begin += kBlock) {
    const Block block = block_function(values + begin, std::min(kBlock, count - begin));
    const double top = block.highest;
    if (std::isnan(top)) return top;
    if (std::isinf(highest) && highest > 0) continue;  // only a value that is not a number counts now
    if (top > highest) {
      sum *= std::exp(highest - top);
      highest = top;
    }
    if (std::isfinite(top)) sum += block.sum * std::exp(top - highest);
  }
  return std::isinf(highest) ? highest : highest + std::log(sum);
}

double log_sum_exp(const double* values, std::uint64_t count) {
  double highest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (std::isnan(values[i])) return values[i];
    highest = std::max(highest, values[i]);
  }
  if (std::isinf(highest)) return highest;
  for (std::uint64_t i = 0; i < count; ++i) sum += std::exp(values[i] - highest);
  return highest + std::log(sum);
}

}  // namespace gentrie
