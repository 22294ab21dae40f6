#ifndef GENTRIE_FILE_H_
#define GENTRIE_FILE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "gentrie/trie.h"

namespace gentrie {

/// Version of the file layout; a reader refuses any other.
inline constexpr int kFormatVersion = 3;

/// Whether load() checks the checksum of every array.
enum class Verify { kAuto, kNever, kAlways };
inline constexpr std::uint64_t kAutoVerifyBytes = std::uint64_t{16} << 20;  ///< kAuto: files below this are checked

/// Writes a safetensors file: to a temporary name beside `path`, synced, then renamed over it. `poll`, where given, is
/// called between parts of the work and may throw to stop it; nothing is left then.
/// \throws IoError
void save_trie(const Trie& trie, const std::string& path, const std::map<std::string, std::string>& metadata,
               const std::function<void()>& poll = {});

struct LoadOptions {
  Verify verify = Verify::kAuto;
  bool prefault = false;  ///< read the whole file into memory now, not page by page at the first lookups
  int num_threads = 0;    ///< for verifying; 0: default_num_threads()
};

/// Maps a file written by save_trie(). Header and array table are always checked.
/// \throws IoError, FormatError (truncated, altered, of another format or version)
std::shared_ptr<const Trie> load_trie(const std::string& path, const LoadOptions& options = {});

/// Recomputes every checksum and checks what the arrays say of each other, on `num_threads` (0: as many as
/// default_num_threads()). `tick`, where given, is called with the share of the work done, and may throw to stop it.
/// \throws FormatError
void verify_trie(const Trie& trie, int num_threads = 0, const std::function<void(double)>& tick = {});

}  // namespace gentrie

#endif  // GENTRIE_FILE_H_
