#ifndef GENTRIE_XXHASH64_H_
#define GENTRIE_XXHASH64_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace gentrie {

/// XXH64 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), seed 0, of bytes that come in
/// parts.
class Xxhash64 {
 public:
  void update(const void* data, std::uint64_t length) {
    const auto* at = static_cast<const unsigned char*>(data);
    const unsigned char* const end = at + length;
    if (const std::uint64_t held = length_ % kStripe; held > 0) {
      const std::uint64_t taken = std::min(kStripe - held, length);
      std::memcpy(held_ + held, at, taken);
      length_ += taken;
      at += taken;
      if (length_ % kStripe != 0) return;
      take_stripe(held_);
    }
    length_ += static_cast<std::uint64_t>(end - at);
    for (; static_cast<std::uint64_t>(end - at) >= kStripe; at += kStripe) take_stripe(at);
    if (at != end) std::memcpy(held_, at, static_cast<std::uint64_t>(end - at));
  }

  std::uint64_t digest() const {
    std::uint64_t hash = kPrime5;
    if (length_ >= kStripe) {
      hash = rotate(lanes_[0], 1) + rotate(lanes_[1], 7) + rotate(lanes_[2], 12) + rotate(lanes_[3], 18);
      for (const std::uint64_t lane : lanes_) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
    }
    hash += length_;
    const unsigned char* at = held_;
    const unsigned char* const end = held_ + length_ % kStripe;
    for (; end - at >= 8; at += 8) hash = rotate(hash ^ round(0, read64(at)), 27) * kPrime1 + kPrime4;
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

 private:
  static constexpr std::uint64_t kStripe = 32;
  static constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F,
                                 kPrime3 = 0x165667B19E3779F9, kPrime4 = 0x85EBCA77C2B2AE63,
                                 kPrime5 = 0x27D4EB2F165667C5;

  static std::uint64_t rotate(std::uint64_t x, int by) { return x << by | x >> (64 - by); }
  static std::uint64_t round(std::uint64_t lane, std::uint64_t input) {
    return rotate(lane + input * kPrime2, 31) * kPrime1;
  }
  static std::uint64_t read64(const unsigned char* at) {
    std::uint64_t value;
    std::memcpy(&value, at, 8);
    return value;
  }
  void take_stripe(const unsigned char* at) {
    for (std::uint64_t& lane : lanes_) {
      lane = round(lane, read64(at));
      at += 8;
    }
  }

  std::uint64_t lanes_[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  std::uint64_t length_ = 0;
  unsigned char held_[kStripe] = {};  ///< the first length_ % kStripe: what no stripe was taken of
};

inline std::uint64_t xxhash64(const void* data, std::uint64_t length) {
  Xxhash64 hash;
  hash.update(data, length);
  return hash.digest();
}

}  // namespace gentrie

#endif  // GENTRIE_XXHASH64_H_
