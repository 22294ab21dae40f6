"""What gentrie is compared with: constrained decoding written in plain Python and torch.

``dict_trie`` is the prefix tree that all of them share, ``published`` the approach of RecLM-cgen
(arXiv 2505.03336), ``transformers_prefix`` a prefix function for the processor that ``transformers``
brings along, ``dense_losses`` BEAR's loss over dense rows, as published.
"""
