#ifndef GENTRIE_XXHASH64_H_
#define GENTRIE_XXHASH64_H_

#include <cstdint>
#include <cstring>

namespace gentrie {

/// XXH64 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), seed 0.
inline std::uint64_t xxhash64(const void* data, std::uint64_t length, std::uint64_t seed = 0) {
  constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9,
                          kPrime4 = 0x85EBCA77C2B2AE63, kPrime5 = 0x27D4EB2F165667C5;
  const auto rotate = [](std::uint64_t x, int by) { return x << by | x >> (64 - by); };
  const auto round = [&](std::uint64_t lane, std::uint64_t input) {
    return rotate(lane + input * kPrime2, 31) * kPrime1;
  };
  const auto* at = static_cast<const unsigned char*>(data);
  const unsigned char* const end = at + length;
  const auto read64 = [&] {
    std::uint64_t value;
    std::memcpy(&value, at, 8);
    at += 8;
    return value;
  };

  std::uint64_t hash;
  if (length >= 32) {
    std::uint64_t lanes[4] = {seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1};
    do {
      for (std::uint64_t& lane : lanes) lane = round(lane, read64());
    } while (end - at >= 32);
    hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (const std::uint64_t lane : lanes) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  } else {
    hash = seed + kPrime5;
  }
  hash += length;
  while (end - at >= 8) hash = rotate(hash ^ round(0, read64()), 27) * kPrime1 + kPrime4;
  if (end - at >= 4) {
    std::uint32_t value;
    std::memcpy(&value, at, 4);
    at += 4;
    hash = rotate(hash ^ value * kPrime1, 23) * kPrime2 + kPrime3;
  }
  for (; at != end; ++at) hash = rotate(hash ^ *at * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace gentrie

#endif  // GENTRIE_XXHASH64_H_
