#ifndef GENTRIE_FILE_H_
#define GENTRIE_FILE_H_

#include <map>
#include <memory>
#include <string>

#include "gentrie/trie.h"

namespace gentrie {

/// Version of the file layout; a reader refuses any other.
inline constexpr int kFormatVersion = 1;

/// Whether load() checks the checksum of every array.
enum class Verify { kAuto, kNever, kAlways };
inline constexpr std::uint64_t kAutoVerifyBytes = std::uint64_t{16} << 20;  ///< kAuto: files below this are checked

/// Writes a safetensors file: to a temporary name beside `path`, synced, then renamed over it.
/// \throws IoError
void save_trie(const Trie& trie, const std::string& path, const std::map<std::string, std::string>& metadata);

/// Maps a file written by save_trie(). Header and array table are always checked.
/// \throws IoError, FormatError (truncated, altered, of another format or version)
std::shared_ptr<const Trie> load_trie(const std::string& path, Verify verify = Verify::kAuto);

/// Recomputes every checksum and checks what the arrays say of each other. \throws FormatError
void verify_trie(const Trie& trie);

}  // namespace gentrie

#endif  // GENTRIE_FILE_H_
