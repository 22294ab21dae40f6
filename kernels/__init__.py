"""Operations on tensors of any device. They know tensors and the trie's flat arrays, not models or tokenizers."""
