"""Keep a language model inside a catalog: token tries for constrained generation, training and search."""

from gentrie._core import __version__
from gentrie._paths import get_cmake_dir, get_include
from gentrie.bitmask import (
    allocate_token_bitmask,
    apply_token_bitmask_inplace,
    get_bitmask_shape,
    reset_token_bitmask,
)
from gentrie.history import prefix_allowed_tokens_fn
from gentrie.item_filter import ItemFilter
from gentrie.live_catalog import LiveCatalog
from gentrie.matcher import TrieMatcher, batch_accept_token, batch_fill_next_token_bitmask
from gentrie.trie import TokenTrie

__all__ = [
    "ItemFilter",
    "LiveCatalog",
    "TokenTrie",
    "TrieMatcher",
    "__version__",
    "allocate_token_bitmask",
    "apply_token_bitmask_inplace",
    "batch_accept_token",
    "batch_fill_next_token_bitmask",
    "get_bitmask_shape",
    "get_cmake_dir",
    "get_include",
    "prefix_allowed_tokens_fn",
    "reset_token_bitmask",
]
