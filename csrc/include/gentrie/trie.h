#ifndef GENTRIE_TRIE_H_
#define GENTRIE_TRIE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gentrie/types.h"
#include "gentrie/view.h"

namespace gentrie {

/// The arrays of a trie in the order in which they are stored.
enum class ArrayId {
  kVocabulary,
  kEdgeIndptr,
  kEdgeTokens,
  kEdgeToNode,
  kLeafBegin,
  kLeafPrefix,
  kRunTokens,
  kRunBlocks,
  kRunOffsets,
  kItemIndptr,
  kItemIds,
};
inline constexpr std::size_t kNumArrays = 11;

/// Name of an array in files and in `nbytes_by_array`.
const char* array_name(ArrayId id);

/// One array: `count` values of `itemsize` bytes. Readable up to the next multiple of 64 bytes.
struct ArrayRef {
  const void* data = nullptr;
  std::uint64_t count = 0;
  std::uint32_t itemsize = 1;
  bool is_signed = false;

  std::uint64_t nbytes() const { return count * itemsize; }
  std::uint64_t padded_nbytes() const { return (nbytes() + 63) / 64 * 64; }
};
using ArrayTable = std::array<ArrayRef, kNumArrays>;

/// The counts that, with the arrays, make a trie.
struct TrieHeader {
  std::uint64_t num_nodes = 0;
  std::uint64_t num_leaves = 0;
  std::uint64_t num_items = 0;
  std::uint64_t num_run_tokens = 0;
  std::uint64_t run_token_bits = 0;
  std::uint64_t run_offset_bits = 0;
  std::uint64_t max_depth = 0;
  std::uint64_t max_branching = 0;
  std::int64_t vocab_size = 0;
  std::int64_t end_token_id = kNoToken;
};

/// The file that a trie is mapped from, as it was when it was loaded.
struct FileStamp {
  std::string path;  ///< empty: none
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t seconds = 0, nanoseconds = 0;  ///< last written to
};

class ItemIndex;

/// Rows that could not go on, as histories and matchers met them; a row counts at each call that meets it so.
struct ClosedRows {
  std::atomic<std::uint64_t> dead{0};     ///< had left the trie
  std::atomic<std::uint64_t> emptied{0};  ///< filter and earlier items left nothing
};

/// A catalog's token sequences, immutable: share it between threads without locks. Owns its arrays or the mapping they
/// lie in.
///
/// \code
///   auto trie = gentrie::build_trie(source, options);
///   gentrie::TrieView view = trie->view();
///   gentrie::State state = view.advance(gentrie::kRoot, token);
/// \endcode
class Trie {
 public:
  /// `storage` keeps the memory behind `arrays` alive. An empty fingerprint is computed from the contents.
  Trie(const TrieHeader& header, const ArrayTable& arrays, std::shared_ptr<const void> storage,
       std::string fingerprint = {}, std::map<std::string, std::string> metadata = {}, FileStamp file = {});
  ~Trie();
  Trie(const Trie&) = delete;
  Trie& operator=(const Trie&) = delete;

  const TrieView& view() const { return view_; }
  const TrieHeader& header() const { return header_; }
  const ArrayTable& arrays() const { return arrays_; }
  const ArrayRef& array(ArrayId id) const { return arrays_[static_cast<std::size_t>(id)]; }

  /// Bytes of what lookups read besides the arrays.
  std::uint64_t token_index_nbytes() const { return (token_bits_.size() + root_bits_.size()) * sizeof(std::uint64_t); }

  /// Sixteen hexadecimal digits that name the contents: vocabulary size, end token, sequences and item ids.
  const std::string& fingerprint() const { return fingerprint_; }
  /// What the file was saved with; empty for a trie just built.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  const FileStamp& file() const { return file_; }

  /// Finds items by id; made at the first call (a pass over the items), then kept as long as the trie.
  const ItemIndex& item_index(const Poll& poll = {}) const;
  std::uint64_t item_index_nbytes() const;  ///< 0 before that

  /// Counted for whoever watches over a service, who may keep it longer than the trie; nothing depends on it.
  const std::shared_ptr<ClosedRows>& closed_rows() const { return closed_rows_; }

  /// Appends the tokens of one sequence (end token included). \throws std::out_of_range
  void append_sequence(std::uint32_t leaf, std::vector<Token>* tokens) const;
  /// Visits every sequence in lexicographic order, which is not that of the leaves: as many as there are leaves, or
  /// \throws FormatError
  void for_each_sequence(const std::function<void(std::uint32_t leaf, const std::vector<Token>& tokens)>& visit,
                         const Poll& poll = {}) const;

 private:
  TrieHeader header_;
  ArrayTable arrays_;
  std::shared_ptr<const void> storage_;
  std::vector<std::uint64_t> token_bits_, root_bits_;  // behind the view's indices: made at load, in no file
  TrieView view_;
  std::string fingerprint_;
  std::map<std::string, std::string> metadata_;
  FileStamp file_;
  mutable std::atomic<const ItemIndex*> item_index_{nullptr};
  mutable std::atomic<int> item_index_maker_{0};  ///< process of which a thread is making it; no lock, see item_index()
  std::shared_ptr<ClosedRows> closed_rows_ = std::make_shared<ClosedRows>();
};

/// Whether states and filters of one trie are those of the other: by the fingerprint, and, since a file that was not
/// verified may claim any, by every count that bounds an index.
bool is_same_catalog(const Trie& a, const Trie& b);

/// Fingerprint from the header and one checksum per array.
std::string fingerprint_of(const TrieHeader& header, const ArrayTable& arrays,
                           const std::array<std::uint64_t, kNumArrays>& checksums);

/// XXH64 of each array's padded bytes, arrays side by side on up to `num_threads`.
std::array<std::uint64_t, kNumArrays> checksums_of(const ArrayTable& arrays, int num_threads = 1,
                                                   const Poll& poll = {});

}  // namespace gentrie

#endif  // GENTRIE_TRIE_H_
