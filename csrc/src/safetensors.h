#ifndef GENTRIE_SAFETENSORS_H_
#define GENTRIE_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace gentrie {

/// One tensor of a safetensors header; offsets count from the end of the header.
struct TensorEntry {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// The JSON header of a safetensors file (https://github.com/huggingface/safetensors#format).
struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<TensorEntry> tensors;
};

/// Bytes of a header, entries of its metadata, and tensors that a reader takes: what a file claims costs no more memory
/// than a few times its size.
inline constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{100} << 20, kMaxHeaderEntries = 1 << 16;

/// The header's bytes, padded with spaces so that with the 8-byte length before it a multiple of 64 results.
std::string write_safetensors_header(const SafetensorsHeader& header);

/// Strict: \throws FormatError for anything that is not such a header.
SafetensorsHeader parse_safetensors_header(const char* text, std::uint64_t length);

}  // namespace gentrie

#endif  // GENTRIE_SAFETENSORS_H_
