# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""Lookups in a trie for kernels: ``csrc/include/gentrie/view.h`` on the device.

``trie`` points to a descriptor row (see ``tables``), ``allow`` to a filter's row or is 0 where all is allowed. States,
nodes, edges and leaves are int64, scalars or blocks alike; ``live`` says which lanes hold one, the others load nothing.
As in view.h no value read from an array is used as an index before it is bounded.
"""

from __future__ import annotations

from gentrie.kernels._triton import tl, triton
from gentrie.kernels.tables import ARRAYS, COUNTS, FILTER_COLUMNS
from gentrie.kernels.tables import WIDTH as _WIDTH

WIDTH = tl.constexpr(_WIDTH)
NUM_NODES = tl.constexpr(COUNTS.index("num_nodes"))
NUM_EDGES = tl.constexpr(COUNTS.index("num_edges"))
NUM_LEAVES = tl.constexpr(COUNTS.index("num_leaves"))
NUM_RUN_TOKENS = tl.constexpr(COUNTS.index("num_run_tokens"))
VOCAB_SIZE = tl.constexpr(COUNTS.index("vocab_size"))
END_TOKEN = tl.constexpr(COUNTS.index("end_token_id"))
NUM_TOKENS = tl.constexpr(COUNTS.index("num_tokens"))
EDGE_TOKEN_BYTES = tl.constexpr(COUNTS.index("edge_token_bytes"))
RUN_TOKEN_BITS = tl.constexpr(COUNTS.index("run_token_bits"))
RUN_OFFSET_BITS = tl.constexpr(COUNTS.index("run_offset_bits"))
VOCABULARY = tl.constexpr(len(COUNTS) + ARRAYS.index("vocabulary"))
EDGE_INDPTR = tl.constexpr(len(COUNTS) + ARRAYS.index("edge_indptr"))
EDGE_TOKENS = tl.constexpr(len(COUNTS) + ARRAYS.index("edge_tokens"))
EDGE_TO_NODE = tl.constexpr(len(COUNTS) + ARRAYS.index("edge_to_node"))
LEAF_BEGIN = tl.constexpr(len(COUNTS) + ARRAYS.index("leaf_begin"))
LEAF_PREFIX = tl.constexpr(len(COUNTS) + ARRAYS.index("leaf_prefix"))
RUN_TOKENS = tl.constexpr(len(COUNTS) + ARRAYS.index("run_tokens"))
RUN_BLOCKS = tl.constexpr(len(COUNTS) + ARRAYS.index("run_blocks"))
RUN_OFFSETS = tl.constexpr(len(COUNTS) + ARRAYS.index("run_offsets"))
FILTER_LEAVES = tl.constexpr(FILTER_COLUMNS.index("num_leaves"))
FILTER_CLOSED = tl.constexpr(FILTER_COLUMNS.index("num_closed"))
FILTER_WORDS = tl.constexpr(FILTER_COLUMNS.index("leaf_words"))
FILTER_CLOSED_LEAVES = tl.constexpr(FILTER_COLUMNS.index("closed_leaves"))

OFF_TRIE = tl.constexpr(-1)
FREE_TEXT = tl.constexpr(-2)
FINISHED = tl.constexpr(-3)
REMAINING_SHIFT = tl.constexpr(40)
ONE_TOKEN = tl.constexpr(1 << 40)
TARGET_MASK = tl.constexpr((1 << 40) - 1)
LOW_32 = tl.constexpr(0xFFFFFFFF)


@triton.jit
def descriptor_row(descriptors, index, row, num_rows):
    """The descriptor that ``index[row]`` names, the first where ``index`` is None, 0 for a number that is no row's."""
    chosen = tl.zeros([], tl.int64)
    if index is not None:
        chosen = tl.load(index + row).to(tl.int64)
    is_row = (chosen >= 0) & (chosen < num_rows)
    return tl.where(is_row, (descriptors + chosen * WIDTH).to(tl.int64), 0)


@triton.jit
def count_at(trie, COLUMN: tl.constexpr):
    """A count of the descriptor at address ``trie``; 0 of none."""
    return tl.load(trie.to(tl.pointer_type(tl.int64)) + COLUMN, mask=trie != 0, other=0)


@triton.jit
def array_at(trie, COLUMN: tl.constexpr, dtype: tl.constexpr):
    """The array whose address stands in the descriptor."""
    return count_at(trie, COLUMN).to(tl.pointer_type(dtype))


@triton.jit
def gated(live, flag):
    """``live & flag`` of a block and a scalar, for which Triton's interpreter gives no boolean."""
    return live.to(tl.int32) * flag.to(tl.int32) > 0


@triton.jit
def load_u32(array, index, live):
    return tl.load(array + index, mask=live, other=0).to(tl.int64)


@triton.jit
def packed_at(words, bits, index, live):
    """Value ``index`` of a PackedView of 32-bit words."""
    bit = index * bits
    low = load_u32(words, bit >> 5, live)
    high = load_u32(words, (bit >> 5) + 1, live)
    return ((low | (high << 32)) >> (bit & 31)) & ((tl.full([], 1, tl.int64) << bits) - 1)


@triton.jit
def rank_in(word, index):
    """Ones before ``index``, from the word of a RankedBitmap that holds it."""
    below = ((word & LOW_32) & ((tl.full([], 1, tl.int64) << (index & 31)) - 1)).to(tl.uint32)
    below = below - ((below >> 1) & 0x55555555)  # compilers know this as a population count
    below = (below & 0x33333333) + ((below >> 2) & 0x33333333)
    below = (below + (below >> 4)) & 0x0F0F0F0F
    return ((word >> 32) & LOW_32) + ((below * 0x01010101) >> 24).to(tl.int64)


# --- States -----------------------------------------------------------------------------------------------------------


@triton.jit
def target_of(state):
    return state & TARGET_MASK


@triton.jit
def remaining_of(state):
    return state >> REMAINING_SHIFT


@triton.jit
def run_begin(trie, target, live):
    """Where the run of ``target`` begins; at most num_run_tokens."""
    last = count_at(trie, NUM_RUN_TOKENS)
    block = tl.load(array_at(trie, RUN_BLOCKS, tl.int64) + (target >> 6), mask=live, other=0)
    offset = packed_at(array_at(trie, RUN_OFFSETS, tl.uint32), count_at(trie, RUN_OFFSET_BITS), target, live)
    begin = block + offset
    return tl.where((begin < 0) | (begin > last), last, begin)


@triton.jit
def checked(trie, state):
    """``state``, or OFF_TRIE where it cannot have come from this trie; negative states stay."""
    target = target_of(state)
    live = (state >= 0) & (target < count_at(trie, NUM_NODES) + count_at(trie, NUM_LEAVES))
    length = run_begin(trie, target + 1, live) - run_begin(trie, target, live)
    is_state = live & (remaining_of(state) <= tl.maximum(length, 0))
    return tl.where((state < 0) | is_state, state, OFF_TRIE)


@triton.jit
def is_leaf(trie, state):
    return (state >= 0) & (remaining_of(state) == 0) & (target_of(state) >= count_at(trie, NUM_NODES))


# --- Tokens and edges -------------------------------------------------------------------------------------------------


@triton.jit
def token_at(trie, index, live):
    """Token id of a vocabulary index, within the vocabulary."""
    at = tl.minimum(index, count_at(trie, NUM_TOKENS) - 1)
    token = load_u32(array_at(trie, VOCABULARY, tl.uint32), at, live)
    return tl.minimum(token, count_at(trie, VOCAB_SIZE) - 1)


@triton.jit
def run_token_index(trie, position, live):
    """Vocabulary index of the token at ``position`` of all runs."""
    at = tl.minimum(position, count_at(trie, NUM_RUN_TOKENS))
    return packed_at(array_at(trie, RUN_TOKENS, tl.uint32), count_at(trie, RUN_TOKEN_BITS), at, live)


@triton.jit
def run_position(trie, state, live):
    """Position of the next token of a state inside a run."""
    return tl.maximum(run_begin(trie, target_of(state) + 1, live) - remaining_of(state), 0)


@triton.jit
def edge_begin(trie, node, live):
    """First edge of ``node``; that of the next node ends its range."""
    return tl.minimum(load_u32(array_at(trie, EDGE_INDPTR, tl.uint32), node, live), count_at(trie, NUM_EDGES))


@triton.jit
def edge_token_index(trie, edge, live):
    """Vocabulary index of an edge's token: 1, 2 or 4 bytes, always inside one aligned word."""
    num_bytes = count_at(trie, EDGE_TOKEN_BYTES)
    byte = edge * num_bytes
    word = load_u32(array_at(trie, EDGE_TOKENS, tl.uint32), byte >> 2, live)
    return (word >> ((byte & 3) * 8)) & ((tl.full([], 1, tl.int64) << (num_bytes * 8)) - 1)


@triton.jit
def edge_token(trie, edge, live):
    return token_at(trie, edge_token_index(trie, edge, live), live)


@triton.jit
def first_edge_from(trie, begin, end, token, LANES: tl.constexpr):
    """The first edge in [begin, end) whose token is not below ``token``, or end. Scalars; each round reads LANES edges
    at once and leaves one LANES-th of the range."""
    lane = tl.arange(0, LANES).to(tl.int64)
    while end - begin > LANES:
        step = (end - begin + LANES - 1) // LANES
        last = begin + (lane + 1) * step - 1  # of each part
        live = last < end
        num_below = tl.sum((live & (edge_token(trie, last, live) < token)).to(tl.int64), 0)
        begin = begin + num_below * step
        end = tl.minimum(begin + step, end)
    live = begin + lane < end
    return begin + tl.sum((live & (edge_token(trie, begin + lane, live) < token)).to(tl.int64), 0)


# --- What lies below --------------------------------------------------------------------------------------------------


@triton.jit
def leaf_at(trie, node, edge, child, live):
    """The leaf that ``edge`` of ``node`` leads to if it leads to no node, modulo 2^32; ``child`` is the first
    node-edge's node from there on."""
    begin = edge_begin(trie, node + edge * 0, live)
    _, first = child_of_edge(trie, begin, live)
    leaf = load_u32(array_at(trie, LEAF_BEGIN, tl.uint32), node + edge * 0, live)
    return (leaf + (edge - begin) - (child - first)) & LOW_32


@triton.jit
def leaves_below_node(trie, node, live):
    is_node = live & (node < count_at(trie, NUM_NODES))
    prefix = array_at(trie, LEAF_PREFIX, tl.uint32)
    below = (load_u32(prefix, node + 1, is_node) - load_u32(prefix, node, is_node) + 1) & LOW_32
    return tl.where(is_node, below, 0)


@triton.jit
def child_of_edge(trie, edge, live):
    """``(leads to a node, node of the first node-edge at or after the edge)``."""
    word = tl.load(array_at(trie, EDGE_TO_NODE, tl.int64) + (edge >> 5), mask=live, other=0)
    child = tl.minimum(1 + rank_in(word, edge), count_at(trie, NUM_NODES))
    return ((word >> (edge & 31)) & 1) != 0, child


@triton.jit
def follow(trie, node, edge, live):
    """The state after taking ``edge`` of ``node``; OFF_TRIE where not ``live``."""
    num_nodes = count_at(trie, NUM_NODES)
    to_node, child = child_of_edge(trie, edge, live)
    leaf = leaf_at(trie, node, edge, child, live)
    target = tl.where(to_node, child, num_nodes + leaf)
    limit = tl.where(to_node, num_nodes, num_nodes + count_at(trie, NUM_LEAVES))
    is_there = live & (target < limit)
    length = run_begin(trie, target + 1, is_there) - run_begin(trie, target, is_there)
    return tl.where(is_there, target | (tl.maximum(length, 0) * ONE_TOKEN), OFF_TRIE)


@triton.jit
def advance(trie, state, token, LANES: tl.constexpr):
    """The state after ``token``, or OFF_TRIE. Scalars; ``state`` is checked and not negative."""
    after = tl.full([], OFF_TRIE, tl.int64)
    if remaining_of(state) > 0:
        expected = token_at(trie, run_token_index(trie, run_position(trie, state, True), True), True)
        after = tl.where(expected == token, state - ONE_TOKEN, after)
    else:
        node = target_of(state)
        if node < count_at(trie, NUM_NODES):
            end = edge_begin(trie, node + 1, True)
            edge = first_edge_from(trie, edge_begin(trie, node, True), end, token, LANES)
            is_found = edge < end
            after = follow(trie, node, edge, is_found & (edge_token(trie, edge, is_found) == token))
    return after


@triton.jit
def leaves_below(trie, state, live):
    """Leaves that states (checked) can still reach, as ``(begin, end)``."""
    num_nodes = count_at(trie, NUM_NODES)
    num_leaves = count_at(trie, NUM_LEAVES)
    target = target_of(state)
    at_node = live & (target < num_nodes)
    leaf = load_u32(array_at(trie, LEAF_BEGIN, tl.uint32), target, at_node)
    begin = tl.minimum(tl.where(at_node, leaf, target - num_nodes), num_leaves)
    count = tl.where(at_node, leaves_below_node(trie, target, at_node), 1)
    return begin, begin + tl.where(live, tl.minimum(count, num_leaves - begin), 0)


@triton.jit
def leaves_of_edge(trie, node, edge, live):
    """Leaves below an edge of ``node``, as ``(begin, end)``."""
    num_leaves = count_at(trie, NUM_LEAVES)
    to_node, child = child_of_edge(trie, edge, live)
    is_node = live & to_node & (child < count_at(trie, NUM_NODES))
    leaf = load_u32(array_at(trie, LEAF_BEGIN, tl.uint32), child, is_node)
    begin = tl.minimum(tl.where(to_node, leaf, leaf_at(trie, node, edge, child, live)), num_leaves)
    count = tl.where(to_node, leaves_below_node(trie, child, is_node), 1)
    return begin, begin + tl.minimum(count, num_leaves - begin)


@triton.jit
def allowed_before(allow, leaf, live):
    """Leaves before ``leaf`` that the filter at address ``allow`` leaves."""
    leaf = tl.minimum(leaf, count_at(allow, FILTER_LEAVES))
    words = count_at(allow, FILTER_WORDS)
    word = tl.load(words.to(tl.pointer_type(tl.int64)) + (leaf >> 5), mask=gated(live, words != 0), other=0)
    before = tl.where(words != 0, rank_in(word, leaf), leaf)
    closed = array_at(allow, FILTER_CLOSED_LEAVES, tl.uint32)
    length = count_at(allow, FILTER_CLOSED)
    num_closed = leaf * 0
    while length > 0:  # closed leaves before this one: powers of two of them, the greatest first
        half = (length + 1) // 2
        ahead = num_closed + half
        is_within = live & (ahead <= count_at(allow, FILTER_CLOSED))
        num_closed = tl.where(is_within & (load_u32(closed, ahead - 1, is_within) < leaf), ahead, num_closed)
        length = tl.where(length > 1, half, 0)
    return before - num_closed


@triton.jit
def has_allowed(allow, begin, end, live):
    """Whether leaves [begin, end) hold one that the filter leaves; where ``allow`` is 0, whether there is any."""
    is_filtered = allow != 0
    left = end - begin
    if is_filtered:
        left = allowed_before(allow, end, live) - allowed_before(allow, begin, live)
    return live & (left > 0)


# --- Children: the tokens that may follow a state, numbered from 0 ----------------------------------------------------


@triton.jit
def children_of(trie, state):
    """``(first edge, count)`` of a checked scalar state; a state inside a run has one child, its next token."""
    node = target_of(state)
    at_node = (state >= 0) & (remaining_of(state) == 0) & (node < count_at(trie, NUM_NODES))
    begin = edge_begin(trie, node, at_node)
    end = edge_begin(trie, node + 1, at_node)
    return begin, tl.where((state >= 0) & (remaining_of(state) > 0), 1, tl.maximum(end - begin, 0))


@triton.jit
def child_token_index(trie, state, begin, child, live):
    """Vocabulary index of each child of one scalar state."""
    in_run = remaining_of(state) > 0
    position = run_position(trie, state, in_run)
    on_edge = edge_token_index(trie, begin + child, gated(live, remaining_of(state) == 0))
    return tl.where(in_run, run_token_index(trie, position, in_run), on_edge)


@triton.jit
def is_child_open(trie, allow, state, begin, child, live):
    """Which children of one scalar state lead to a leaf that the filter leaves; without one, all."""
    is_open = live
    if allow != 0:
        in_run = remaining_of(state) > 0
        first, last = leaves_below(trie, state, in_run)
        at_edge = gated(live, remaining_of(state) == 0)
        edge_first, edge_last = leaves_of_edge(trie, target_of(state), begin + child, at_edge)
        is_open = live & has_allowed(
            allow, tl.where(in_run, first, edge_first), tl.where(in_run, last, edge_last), live
        )
    return is_open
