#ifndef GENTRIE_TYPES_H_
#define GENTRIE_TYPES_H_

#include <cstdint>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>

/// For functions that do nothing but prefetch: GCC takes them for functions without effect, and drops every call that
/// it has not inlined by then.
#define GENTRIE_PREFETCH [[gnu::always_inline]] inline

namespace gentrie {

/// A token id of the language model's vocabulary.
using Token = std::int32_t;

/// A position in a trie, opaque outside this library: a branching node, a place inside a forced run, or a leaf.
/// Valid for the trie (fingerprint) that produced it.
using State = std::int64_t;

inline constexpr State kRoot = 0;       ///< nothing of the item has been written
inline constexpr State kOffTrie = -1;   ///< the history has left the trie
inline constexpr State kFreeText = -2;  ///< outside any item

inline constexpr Token kNoToken = -1;

/// Called by the calling thread now and then during long work (at least ten times a second); may throw to stop it.
using Poll = std::function<void()>;

/// A file that is not ours, is damaged, or is of a newer format.
class FormatError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A build would take more memory than it may; nothing was built.
class MemoryLimitError : public std::bad_alloc {
 public:
  explicit MemoryLimitError(const std::string& what) : what_(what) {}
  const char* what() const noexcept override { return what_.what(); }

 private:
  std::runtime_error what_;  // copied without throwing, as an exception must be
};

/// The operating system refused to read or write; `code()` is errno.
class IoError : public std::runtime_error {
 public:
  IoError(int code, const std::string& what) : std::runtime_error(what), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

}  // namespace gentrie

#endif  // GENTRIE_TYPES_H_
