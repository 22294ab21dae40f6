"""Overall probabilities against the plain model on every whole sequence, and what beam search loses by them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FIRST_TOKEN, PAD, VOCAB_SIZE, tiny_model
from tree_models import tree_model

from gentrie import ItemFilter, TokenTrie, evaluation
from gentrie.evaluation.prefixes import Prefixes, allowed_sequences

token = st.integers(FIRST_TOKEN, FIRST_TOKEN + 7)
catalogs = st.lists(st.lists(token, min_size=1, max_size=6).map(tuple), min_size=1, max_size=12, unique=True)


def trie_of(titles):
    return TokenTrie.from_sequences([list(title) for title in titles], vocab_size=VOCAB_SIZE, end_token_id=1)


def step_logits(model, prompt, path):
    """[len(path), vocabulary]: what each token of the path was chosen from."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            output = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[PAD, *path[:-1]]]))
            return output.logits[0].double()
        return model(input_ids=torch.tensor([prompt + path[:-1]])).logits[0, len(prompt) - 1 :].double()


def sequences_of(trie):
    values, indptr, _, _ = trie.to_sequences()
    return [values[start:stop].tolist() for start, stop in pairwise(indptr)]


def expected_logprob(model, prompt, path, trie, scope):
    total, state = 0.0, trie.root
    for logits, chosen in zip(step_logits(model, prompt, path), path, strict=True):
        valid = torch.from_numpy(np.asarray(trie.next_tokens(state)).astype(np.int64))
        total += float(logits[chosen] - (logits[valid] if scope == "trie" else logits).logsumexp(0))
        state = trie.advance(state, chosen)
    return total


@pytest.mark.parametrize("scope", ["trie", "vocab"])
@pytest.mark.parametrize("kind", ["llama", "Gemma2", "t5"])
@settings(max_examples=8)
@given(
    catalogs, st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=3), st.sampled_from([1, 70, 999])
)
def test_every_sequence_has_the_plain_models_probability(kind, scope, titles, prompts, tokens_per_call):
    model, trie = tree_model(kind), trie_of(titles)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"attention_mask": mask, "scope": scope, "tokens_per_call": tokens_per_call}
    every = evaluation.catalog_logprobs(model, ids, trie, **options)
    sequences = sequences_of(trie)
    expected = [[expected_logprob(model, prompt, path, trie, scope) for path in sequences] for prompt in prompts]
    np.testing.assert_allclose(every, expected, rtol=1e-5, atol=1e-4)
    some = [len(sequences) - 1, 0]
    chosen = evaluation.catalog_logprobs(model, ids, trie, sequences=some, **options)
    np.testing.assert_allclose(chosen, every[:, some], rtol=1e-6, atol=1e-6)
    if scope == "trie":
        np.testing.assert_allclose(np.exp(every).sum(1), 1, rtol=1e-6)


@st.composite
def filtered_catalogs(draw):
    """Rows, some of them alike, their item ids, and which of these are allowed, one at least."""
    rows = draw(st.lists(st.lists(token, min_size=1, max_size=4), min_size=1, max_size=10))
    ids = draw(st.lists(st.integers(0, 30), min_size=len(rows), max_size=len(rows)))
    allowed = draw(st.sets(st.sampled_from(ids), min_size=1))
    return rows, ids, sorted(allowed)


@pytest.mark.parametrize("scope", ["trie", "vocab"])
@pytest.mark.parametrize("kind", ["llama", "t5"])
@settings(max_examples=8)
@given(filtered_catalogs(), st.sampled_from([1, 999]), st.data())
def test_a_filtered_catalog_is_the_catalog_of_the_rest(kind, scope, catalog, tokens_per_call, data):
    rows, ids, allowed = catalog
    model, prompts = tree_model(kind), torch.tensor([[4, 5, 6], [7, 8, 9]])
    build = {"vocab_size": VOCAB_SIZE, "end_token_id": 1}
    whole = TokenTrie.from_sequences(rows, item_ids=ids, **build)
    left = [(row, item) for row, item in zip(rows, ids, strict=True) if item in allowed]
    rest = TokenTrie.from_sequences([row for row, _ in left], item_ids=[item for _, item in left], **build)
    there = np.array([path in sequences_of(rest) for path in sequences_of(whole)])
    options = {"scope": scope, "tokens_per_call": tokens_per_call}
    expected = evaluation.catalog_logprobs(model, prompts, rest, **options)
    targets = [data.draw(st.sampled_from(allowed)) for _ in prompts]
    expected_ranks = evaluation.target_token_ranks(model, prompts, rest, targets, **options)
    twice = ItemFilter.all_items(whole).deny([item for item in set(ids) if item not in allowed])
    for item_filter in (allowed, twice):
        found = evaluation.catalog_logprobs(model, prompts, whole, item_filter=item_filter, **options)
        np.testing.assert_allclose(found[:, there], expected, rtol=1e-5, atol=1e-5)
        assert (found[:, ~there] == -np.inf).all()
        chosen = [*np.flatnonzero(there), *np.flatnonzero(~there)][:3]
        some = evaluation.catalog_logprobs(model, prompts, whole, item_filter=item_filter, sequences=chosen, **options)
        np.testing.assert_allclose(some, found[:, chosen], rtol=1e-5, atol=1e-5)
        of_items, values = evaluation.item_logprobs(found, whole, item_filter=item_filter)
        rest_items, rest_values = evaluation.item_logprobs(expected, rest)
        assert of_items.tolist() == rest_items.tolist() == allowed
        np.testing.assert_allclose(values, rest_values, rtol=1e-5, atol=1e-5)
        ranks = evaluation.target_token_ranks(model, prompts, whole, targets, item_filter=item_filter, **options)
        assert ranks[:, : rest.max_depth].tolist() == expected_ranks.tolist()
        assert not ranks[:, rest.max_depth :].any()
        for k in (1, 2):
            recommended = np.array([[allowed[0], -1]] * 2)
            of_whole = evaluation.pruning(found, targets, recommended, k, whole, token_ranks=ranks)
            of_rest = evaluation.pruning(expected, targets, recommended, k, rest, token_ranks=expected_ranks)
            assert of_whole == of_rest


def test_a_filter_that_closes_everything_or_a_target():
    model, trie, ids = tiny_model("llama"), trie_of([(5,), (5, 6), (7,)]), torch.tensor([[4]])
    assert not allowed_sequences(trie, ItemFilter.from_item_ids(trie, [])).any()
    nothing = evaluation.catalog_logprobs(model, ids, trie, item_filter=[])
    assert nothing.tolist() == [[-np.inf] * 3]
    items, values = evaluation.item_logprobs(nothing, trie, item_filter=[])
    assert (items.size, values.shape) == (0, (1, 0))
    closed = evaluation.pruning(evaluation.catalog_logprobs(model, ids, trie, item_filter=[0]), [2], [[0]], 1, trie)
    assert (closed.num_positives, closed.num_top) == (1, 0)
    with pytest.raises(ValueError, match="targets: item 2 is not in what item_filter leaves of the catalog"):
        evaluation.target_token_ranks(model, ids, trie, [2], item_filter=[0, 1])
    other = ItemFilter.all_items(trie_of([(5,)]))
    for function in (evaluation.catalog_logprobs, lambda *a, **o: evaluation.target_token_ranks(*a, [0], **o)):
        with pytest.raises(ValueError, match="belongs to the trie"):
            function(model, ids, trie, item_filter=other)


@given(catalogs)
def test_prefixes_are_those_of_the_sequences(titles):
    trie = trie_of(titles)
    prefixes = Prefixes.of(trie)
    spelled = [()]
    for node in range(1, prefixes.num_nodes):
        assert prefixes.parent[node] < node
        spelled.append((*spelled[prefixes.parent[node]], int(prefixes.token[node])))
    whole = [tuple(path) for path in sequences_of(trie)]
    assert set(spelled) == {path[:end] for path in whole for end in range(len(path) + 1)}
    assert len(set(spelled)) == prefixes.num_nodes
    assert [spelled[node] for node in prefixes.leaf] == whole
    assert [len(path) for path in spelled] == prefixes.depth.tolist()


@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_token_ranks_count_what_is_more_probable(scope):
    titles = [[5, 6], [5, 7, 8], [5, 7, 9], [10], [11, 12], [13, 6, 7]]
    model, trie = tiny_model("llama"), trie_of(titles)
    prompts = [[4, 5, 6], [7, 8, 9]]
    targets = [[0, 2], [5]]
    ranks = evaluation.target_token_ranks(model, torch.tensor(prompts), trie, targets, scope=scope)
    assert ranks.shape == (3, trie.max_depth)
    for row, (user, item) in zip(ranks, [(0, 0), (0, 2), (1, 5)], strict=True):
        path, state, expected = [*titles[item], 1], trie.root, []
        for logits, chosen in zip(step_logits(model, prompts[user], path), path, strict=True):
            others = trie.next_tokens(state) if scope == "trie" else range(VOCAB_SIZE)
            expected.append(1 + sum(float(logits[other]) > float(logits[chosen]) for other in others))
            state = trie.advance(state, chosen)
        assert row.tolist() == expected + [0] * (trie.max_depth - len(path))


def test_pruned_positives_are_counted():
    trie = TokenTrie.from_sequences([[1], [2], [3], [3]], vocab_size=4, item_ids=[10, 20, 30, 31])
    logprobs = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.2, 0.5, 0.3]])
    recommended = np.array([[20, 30], [31, 20], [10, 30], [20, -1]])
    targets = [[10], [30], [20, 30], [31]]  # pruned; found by its twin; pruned and out of the top 2; pruned
    ranks = np.array([[3, 1], [1, 1], [2, 2], [9, 9], [1, 0]])
    result = evaluation.pruning(logprobs, targets, recommended, 2, trie, token_ranks=ranks)
    assert (result.num_positives, result.num_top, result.num_pruned, result.num_violating) == (5, 4, 3, 1)
    assert result.pruning_rate == pytest.approx(3 / 4)
    assert result.violating_share == pytest.approx(1 / 3)
    wider = evaluation.pruning(logprobs, targets, recommended, 2, trie, token_ranks=ranks, beam_width=3)
    assert wider.num_violating == 0
    with pytest.raises(ValueError, match="item 99 is not in the catalog"):
        evaluation.pruning(logprobs, [99, 10, 10, 10], recommended, 2, trie)
    with pytest.raises(ValueError, match="logprobs has shape"):
        evaluation.pruning(logprobs[:, :2], targets, recommended, 2, trie)


def test_probabilities_of_items_follow_their_sequences():
    trie = TokenTrie.from_sequences([[1], [2], [3], [3]], vocab_size=4, item_ids=[7, 5, 5, 9])
    ids, values = evaluation.item_logprobs(np.log([[0.5, 0.3, 0.2]]), trie)
    assert ids.tolist() == [5, 7, 9]
    np.testing.assert_allclose(np.exp(values), [[0.5, 0.5, 0.2]])


def test_what_does_not_fit_is_refused():
    model, trie, ids = tiny_model("llama"), trie_of([(5,), (6,)]), torch.tensor([[4]])
    for options, message in (
        ({"scope": "all"}, "scope"),
        ({"sequences": [2]}, r"sequences\[0\]=2"),
        ({"tokens_per_call": 0}, "tokens_per_call"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.catalog_logprobs(model, ids, trie, **options)
    wide = TokenTrie.from_sequences([[VOCAB_SIZE], [5]], vocab_size=VOCAB_SIZE + 1)
    with pytest.raises(ValueError, match="logits are 48 wide, the trie needs 49"):
        evaluation.catalog_logprobs(model, ids, wide)
