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

/// Writes a safetensors file: to a temporary name beside `path`, synced, then renamed over it. A symbolic link is
/// followed; a file that is replaced passes on its permissions and, where that is allowed, its owner. Where `poll`
/// stops it nothing is left; what a process that was killed left is removed at the next save to this path.
/// \throws IoError, std::invalid_argument (metadata that no reader takes)
void save_trie(const Trie& trie, const std::string& path, const std::map<std::string, std::string>& metadata,
               const Poll& poll = {});

struct LoadOptions {
  Verify verify = Verify::kAuto;
  bool prefault = false;  ///< read the whole file into memory now, not page by page at the first lookups
  bool copy = false;      ///< read the file into memory of its own, which whoever writes to the file cannot change
  int num_threads = 0;    ///< for verifying; 0: default_num_threads()
  Poll poll = {};
};

/// Maps a file written by save_trie(). Header and array table are always checked. While it is mapped the file must not
/// be written to in place: save_trie() does not, copying over it does. Lookups then give other answers, never a read
/// outside the arrays; a file that was made shorter ends the process with SIGBUS.
/// \throws IoError, FormatError (truncated, altered, of another format or version)
std::shared_ptr<const Trie> load_trie(const std::string& path, const LoadOptions& options = {});

/// Refuses a trie whose file has been written to in place since it was loaded, as its size and time tell; a file that
/// was replaced by another is not ours any more, and harmless. \throws FormatError
void check_file_unchanged(const Trie& trie);

/// Recomputes every checksum and checks what the arrays say of each other, on `num_threads` (0: as many as
/// default_num_threads()). `tick`, where given, is called with the share of the work done, and may throw to stop it.
/// \throws FormatError
void verify_trie(const Trie& trie, int num_threads = 0, const std::function<void(double)>& tick = {});

}  // namespace gentrie

#endif  // GENTRIE_FILE_H_
