"""Checks that an installed wheel works, with nothing installed but its base dependencies."""

import gentrie

trie = gentrie.TokenTrie.from_sequences([[5, 6, 7], [5, 8]], vocab_size=16, end_token_id=1)
assert trie.num_items == 2
assert trie.resolve([5, 8]).tolist() == [1]

matcher = gentrie.TrieMatcher(trie)
assert matcher.accept_token(5)
assert list(matcher.get_allowed_tokens()) == [6, 8]
assert not matcher.accept_token(7)

print(f"gentrie {gentrie.__version__} works")
