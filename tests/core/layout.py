"""A trie file decoded with the safetensors library and nothing of ours: the layout as any language may read it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open


def _by_offset(path: Path) -> list[str]:
    """The arrays' names in the order in which they lie in the file."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return sorted(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])


def decode(path: Path) -> list[tuple[list[int], list[int]]]:
    """Every (sequence, item ids) in lexicographic order."""
    with safe_open(path, framework="numpy") as file:
        meta = file.metadata()
        names = _by_offset(path)
        arrays = {name: file.get_tensor(name)[: int(meta[f"gentrie.length.{name}"])].tolist() for name in names}
    number = {key.removeprefix("gentrie."): int(value) for key, value in meta.items() if value.lstrip("-").isdigit()}
    nodes, leaves, vocabulary = number["num_nodes"], number["num_sequences"], arrays["vocabulary"]

    def packed(name: str, bits: int, count: int) -> list[int]:
        whole = sum(word << 32 * i for i, word in enumerate(arrays[name]))
        return [whole >> bits * i & (1 << bits) - 1 for i in range(count)]

    targets = nodes + leaves
    offsets = packed("run_offsets", number["run_offset_bits"], targets + 1)
    starts = [arrays["run_blocks"][t // 64] + offset for t, offset in enumerate(offsets)]
    run_tokens = packed("run_tokens", number["run_token_bits"], number["num_run_tokens"])
    leads_to_node = [arrays["edge_to_node"][e // 32] >> e % 32 & 1 for e in range(nodes - 1 + leaves)]
    item_indptr = arrays["item_indptr"] or list(range(leaves + 1))

    def below(node: int, prefix: list[int]) -> list[tuple[list[int], list[int]]]:
        found = []
        leaf = arrays["leaf_begin"][node]  # its own come first, those below its child nodes behind them
        for edge in range(*arrays["edge_indptr"][node : node + 2]):
            child = 1 + sum(leads_to_node[:edge])
            target = child if leads_to_node[edge] else nodes + leaf
            run = run_tokens[starts[target] : starts[target + 1]]
            tokens = [*prefix, *(vocabulary[i] for i in [arrays["edge_tokens"][edge], *run])]
            before = len(found)
            if leads_to_node[edge]:
                found += below(child, tokens)
                assert len(found) - before == arrays["leaf_prefix"][child + 1] - arrays["leaf_prefix"][child] + 1
            else:
                found.append((tokens, arrays["item_ids"][item_indptr[leaf] : item_indptr[leaf + 1]]))
                leaf += 1
        return found

    return below(0, [])
