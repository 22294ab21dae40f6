"""Recommendations for many prompts on Ray Data: actors that hold a model and map the catalog from its file.

    pip install 'gentrie[ray]'
    python examples/recommend_ray.py --actors 2 --folder results

Every actor loads the model once; the trie is memory-mapped, so that all actors of a machine share it. Prompts go out
longest first; results are written down as they come in, and a run that was interrupted goes on where it stopped.
Without files of one's own, a small random model over a synthetic catalog stands in.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gentrie import TokenTrie, datasets
from gentrie.generation import Recommendation, RecommendationStore, recommend
from gentrie.generation.beam_search import beam_search

FOUND = pa.schema(
    [
        ("prompt", pa.int64()),
        ("item_ids", pa.list_(pa.list_(pa.int64()))),
        ("scores", pa.list_(pa.float64())),
        ("sequences", pa.list_(pa.list_(pa.int64()))),
        ("token_scores", pa.list_(pa.list_(pa.float64()))),
    ]
)


class Recommender:
    """An actor: a model, a mapped catalog, and a search with them for each batch of prompts."""

    def __init__(self, model: str, trie: str, num_items: int) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = AutoModelForCausalLM.from_pretrained(model).to(self._device).eval()
        self._search = functools.partial(beam_search, loaded, trie=TokenTrie.load(trie), beam_width=num_items)

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts = batch["ids"].to_pylist()
        found = recommend(prompts, self._search, batch_size=len(prompts), device=self._device, progress=False)
        columns = [batch["prompt"], *([getattr(one, name) for one in found] for name in FOUND.names[1:])]
        return pa.table(dict(zip(FOUND.names, columns, strict=True)), schema=FOUND)


def recommend_on_ray(
    prompts: Sequence[Sequence[int]],
    model: str | Path,
    trie: str | Path,
    folder: str | Path,
    *,
    num_items: int = 10,
    batch_size: int = 16,
    actors: int = 2,
    cpus: float = 1,
    gpus: float = 0,
) -> list[Recommendation]:
    """The ``num_items`` best items of each prompt by beam search, in the order of the prompts.

    ``cpus`` and ``gpus`` are those of an actor. Model, catalog and search are named in ``folder``, which refuses
    results of others.
    """
    store = RecommendationStore(folder, prompts, label=f"{model}, {trie}, {num_items} items")
    done = store.read()
    left = sorted(set(range(len(prompts))) - set(done), key=lambda number: -len(prompts[number]))
    rows = [{"prompt": number, "ids": list(prompts[number])} for number in left]
    with tqdm(total=len(prompts), initial=len(done), unit="prompt") as bar:
        if rows:
            # A block is a batch, so that its results are back before the next batch's.
            blocks = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch_size))
            found = blocks.map_batches(
                Recommender,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=actors),
                fn_constructor_args=(str(model), str(trie), num_items),
                num_cpus=cpus,
                num_gpus=gpus,
            )
            for part in found.iter_batches(batch_size=None, batch_format="pyarrow"):
                new = {row.pop("prompt"): Recommendation(**row) for row in part.to_pylist()}
                store.write(new)
                done |= new
                bar.update(len(new))
    return [done[number] for number in range(len(prompts))]


def stand_in(folder: Path, num_prompts: int) -> tuple[Path, Path, list[list[int]]]:
    """A small random model, a synthetic catalog's trie, and prompts of purchase histories; as files and token ids."""
    catalog = datasets.load("steam", num_items=500)
    tokenizer = catalog.train_tokenizer(2000)
    torch.manual_seed(0)
    control = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        **control,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    # The prompt ends in a line break, the context in which titles are encoded.
    trie = TokenTrie.from_titles(
        catalog.titles, tokenizer, context="\n", item_ids=catalog.item_ids, end_token_id=tokenizer.eos_token_id
    )
    trie.save(folder / "catalog.safetensors")
    rng = np.random.default_rng(0)
    bought = [rng.integers(len(catalog.titles), size=rng.integers(1, 5)).tolist() for _ in range(num_prompts)]
    texts = ["".join(f"{catalog.titles[row]}\n" for row in rows) for rows in bought]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return folder / "model", folder / "catalog.safetensors", prompts


def main(arguments: Sequence[str] | None = None) -> list[Recommendation]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a causal language model")
    parser.add_argument("--trie", type=Path, help="catalog, as TokenTrie.save writes it")
    parser.add_argument("--prompts", type=Path, help="JSON lines, each the list of a prompt's token ids")
    parser.add_argument("--folder", type=Path, default=Path("recommendations"), help="for the results")
    parser.add_argument("--items", type=int, default=10, help="items a prompt")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1, help="of an actor")
    parser.add_argument("--gpus", type=float, default=0, help="of an actor")
    options = parser.parse_args(arguments)
    own = (options.model, options.trie, options.prompts)
    if any(own) and not all(own):
        parser.error("--model, --trie and --prompts go together")
    if all(own):
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
        model, trie, prompts = options.model, options.trie, [json.loads(line) for line in lines]
    else:
        model, trie, prompts = stand_in(options.folder, 64)
    results = recommend_on_ray(
        prompts,
        model.resolve(),
        trie.resolve(),
        options.folder,
        num_items=options.items,
        batch_size=options.batch_size,
        actors=options.actors,
        cpus=options.cpus,
        gpus=options.gpus,
    )
    for number, one in enumerate(results[:5]):
        print(f"prompt {number}: items {[items[0] for items in one.item_ids]}")
    return results


if __name__ == "__main__":
    main()
