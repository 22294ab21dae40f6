// Builds a trie of two sequences, walks it and prints the version of gentrie it was linked with.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "gentrie/builder.h"
#include "gentrie/version.h"

int main() {
  const std::vector<std::int64_t> values = {5, 6, 7, 5, 8};
  const std::vector<std::int64_t> indptr = {0, 3, 5};

  gentrie::SequenceSource source;
  source.values = values.data();
  source.num_values = values.size();
  source.indptr = indptr.data();
  source.num_rows = indptr.size() - 1;

  gentrie::BuildOptions options;
  options.vocab_size = 16;
  options.end_token_id = 1;
  const std::shared_ptr<const gentrie::Trie> trie = gentrie::build_trie(source, options);

  const gentrie::TrieView& view = trie->view();
  gentrie::State state = gentrie::kRoot;
  for (gentrie::Token token : {5, 8, 1}) state = view.advance(state, token);
  if (!view.is_leaf(state)) {
    std::fprintf(stderr, "5, 8 and the end token should be a whole item\n");
    return 1;
  }
  if (view.advance(gentrie::kRoot, 6) != gentrie::kOffTrie) {
    std::fprintf(stderr, "no item starts with 6\n");
    return 1;
  }
  std::puts(GENTRIE_VERSION);
  return 0;
}
