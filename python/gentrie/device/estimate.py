"""What a catalog will take on a device, before it is built."""

from __future__ import annotations

from gentrie import _validate
from gentrie.device.trie import padded

_INT32_LIMIT = 2**31 - 1


def max_nbytes(num_items: int, max_length: int, vocab_size: int, *, items: bool = False) -> dict[str, int]:
    """The most bytes that each array of a :class:`DeviceTrie` can take, each up to the next multiple of 64.

    A trie of N sequences has at most N nodes that branch or begin it, 2 N edges, and at depth d no more places than N
    or ``vocab_size ** d``. The bound holds for every such catalog; one whose items share beginnings takes less, which
    :meth:`DeviceTrie.estimate_nbytes` says of a built trie.

    Parameters
    ----------
    num_items
        Items, at most 2**31 - 2.
    max_length
        Tokens of the longest sequence, its end token included.
    vocab_size
        As in :meth:`gentrie.TokenTrie.from_sequences`.
    items
        Count the leaf-to-item table too.

    Raises
    ------
    ValueError, TypeError
        For numbers out of range.
    """
    leaves = _validate.integer("num_items", num_items, 1, _INT32_LIMIT - 1)
    length = _validate.integer("max_length", max_length, 1, _INT32_LIMIT)
    tokens = min(_validate.integer("vocab_size", vocab_size, 1, _INT32_LIMIT), leaves * length)
    nodes, edges = leaves, 2 * leaves - 1
    targets = nodes + leaves
    num_places, width = 0, 1
    for depth in range(length):
        width *= vocab_size
        if vocab_size == 1 or width >= leaves:  # from here on as many as there are sequences
            num_places += (length - depth) * leaves
            break
        num_places += width
    counts = {
        "vocabulary": 4 * tokens,
        "edge_indptr": 4 * (nodes + 1),
        "edge_tokens": edges * (1 if tokens <= 1 << 8 else 2 if tokens <= 1 << 16 else 4),
        "edge_to_node": 8 * (edges // 32 + 1),
        "leaf_begin": 4 * nodes,
        "leaf_prefix": 4 * (nodes + 1),
        "run_tokens": _packed_nbytes(num_places - leaves, (tokens - 1).bit_length()),
        "run_blocks": 8 * (targets // 64 + 1),
        "run_offsets": _packed_nbytes(targets + 1, (64 * (length - 1)).bit_length()),
    }
    if items:
        counts |= {"item_indptr": 4 * (leaves + 1), "item_ids": 8 * leaves}
    return {name: padded(nbytes) for name, nbytes in counts.items()}


def _packed_nbytes(count: int, bits: int) -> int:
    """Of packed integers, two words of padding included."""
    return 4 * ((count * bits + 31) // 32 + 2)
