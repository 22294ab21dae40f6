"""Hidden states in the token tree are those of the plain model on prompt and path."""

import copy

import numpy as np
import pytest
import torch
from compiled_models import SOME_WAYS, compiled, still_compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FIRST_TOKEN, PAD, VOCAB_SIZE, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM
from tree_models import LATENT, PACKED, PADDED, logits_behind, tree_model

from gentrie.model import tree_attention, tree_head
from gentrie.model.tree_attention import Step, UnsupportedModelError
from gentrie.model.tree_decoder import TreeDecoder
from gentrie.model.tree_packed import PackedForward
from gentrie.model.tree_slots import TreeSlots

token = st.integers(FIRST_TOKEN, VOCAB_SIZE - 1)
prompts_of_tokens = st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4)


def padded(prompts, side):
    width = max(map(len, prompts))
    fill = [width - len(prompt) for prompt in prompts]
    left = side == "left"
    ids = [[PAD] * n * left + p + [PAD] * n * (not left) for p, n in zip(prompts, fill, strict=True)]
    mask = [[0] * n * left + [1] * len(p) + [0] * n * (not left) for p, n in zip(prompts, fill, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


class Tree:
    """A decoder, and beside it each slot's prompt and path in the clear."""

    def __init__(self, model, prompts, side="left"):
        self.model, self.prompts = model, prompts
        ids, mask = padded(prompts, side)
        self.decoder = TreeDecoder(model, ids, mask)
        self.paths = {int(slot): (i, []) for i, slot in enumerate(self.decoder.prompt_slots)}
        self.compare(self.decoder.prompt_slots, self.decoder.prompt_hidden)

    def extend(self, parents, tokens):
        slots, hidden = self.decoder.extend(np.array(parents), np.array(tokens))
        for slot, parent, added in zip(slots, parents, tokens, strict=True):
            prompt, path = self.paths[int(slots[~parent]) if parent < 0 else parent]
            self.paths[int(slot)] = (prompt, [*path, added])
        self.compare(slots, hidden)
        return slots.tolist()

    def compare(self, slots, hidden):
        rows = [self.paths[int(slot)] for slot in slots]
        expected = logits_behind(self.model, [(self.prompts[prompt], path) for prompt, path in rows])
        error = (self.decoder.logits(hidden) - expected).abs().amax(1)
        assert bool((error < 1e-5 * expected.abs().amax(1).clamp(min=1)).all())


@pytest.mark.parametrize("kind", PACKED + PADDED + LATENT)
@settings(max_examples=6)
@given(data=st.data())
def test_any_tree_equals_the_plain_model(kind, data):
    model = tree_model(kind)
    before = model.config._attn_implementation
    tree = Tree(model, data.draw(prompts_of_tokens), data.draw(st.sampled_from(["left", "right"])))
    assert kind in LATENT or tree.decoder.packed == (kind in PACKED)
    live = [int(slot) for slot in tree.decoder.prompt_slots]
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, 9))
        parents = [data.draw(st.sampled_from([*live, *(~j for j in range(row))])) for row in range(count)]
        live += tree.extend(parents, data.draw(st.lists(token, min_size=count, max_size=count)))
        if data.draw(st.booleans()):
            live = data.draw(st.lists(st.sampled_from(live), unique=True, max_size=4))
            tree.decoder.keep(live)
            live = list(dict.fromkeys([*live, *(int(slot) for slot in tree.decoder.prompt_slots)]))
    assert model.config._attn_implementation == before
    if kind in PACKED:
        assert tree.decoder.stats.padded_slots == 0


def test_many_rows_of_one_prompt_beside_few_of_others():
    tree = Tree(tree_model("llama"), [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]])
    first, second, third, last = (int(slot) for slot in tree.decoder.prompt_slots)
    children = tree.extend([last] * 20 + [first] + [third] * 11, [*range(10, 30), 9, *range(10, 21)])
    tree.extend([children[3], *([children[25]] * 10), second], [*range(20, 32)])


def test_a_forced_run_is_one_call():
    tree = Tree(tree_model("gpt2"), [[5, 6]])
    tree.extend([int(tree.decoder.prompt_slots[0]), *(~i for i in range(11))], range(10, 22))
    assert (tree.decoder.stats.calls, tree.decoder.stats.tokens) == (1, 12)


def test_prompts_may_join_later():
    model = tree_model("Qwen3")
    tree = Tree(model, [[5, 6, 7], [8]])
    early = tree.extend([int(tree.decoder.prompt_slots[1])], [9])
    slots, hidden = tree.decoder.add_prompts(torch.tensor([[21, 22], [23, 24]]))
    tree.prompts += [[21, 22], [23, 24]]
    tree.paths.update({int(slot): (2 + i, []) for i, slot in enumerate(slots)})
    tree.compare(slots, hidden)
    tree.extend([int(slots[1]), early[0], int(slots[0]), ~0], [30, 31, 32, 33])


@pytest.mark.parametrize("kind", ["llama", "t5", "Bloom"])
def test_prompts_may_come_as_embeddings(kind):
    model = tree_model(kind)
    ids, mask = padded([[5, 6, 7], [8, 9]], "left")
    by_ids = TreeDecoder(model, ids, mask)
    by_embeddings = TreeDecoder(model, attention_mask=mask, inputs_embeds=model.get_input_embeddings()(ids))
    torch.testing.assert_close(by_embeddings.prompt_hidden, by_ids.prompt_hidden)
    hidden = [decoder.extend(decoder.prompt_slots, [10, 11])[1] for decoder in (by_ids, by_embeddings)]
    torch.testing.assert_close(*hidden)


@pytest.mark.parametrize("kind", ["llama", "Gemma2", "Cohere", "tied_t5"])
def test_some_rows_of_the_head_are_those_of_all(kind):
    decoder = TreeDecoder(tree_model(kind), torch.tensor([[5, 6, 7]]))
    every = decoder.logits(decoder.prompt_hidden)
    for chosen in (torch.tensor([3, 40, 7]), torch.tensor([1])):
        torch.testing.assert_close(decoder.logits(decoder.prompt_hidden, chosen), every[:, chosen])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "Gemma2", "Cohere", "tied_t5", "adapter"])
@pytest.mark.parametrize("tile", [1, 7 * 3, 1 << 17])
def test_what_normalises_logits_over_the_whole_vocabulary(kind, tile, monkeypatch):
    monkeypatch.setattr(tree_head, "_TILE", tile)
    monkeypatch.setattr(tree_head, "_LEAST_COLUMNS", 1)
    monkeypatch.setattr(tree_head, "_ROWS", 2)
    model = copy.deepcopy(tree_model("llama" if kind == "adapter" else kind))
    head = model.get_output_embeddings()
    if kind == "adapter":  # a head that only knows how to compute all of its rows
        model.set_output_embeddings(torch.nn.Sequential(head))
        model.get_output_embeddings().weight = head.weight
    if kind in ("llama", "adapter"):
        head.bias = torch.nn.Parameter(torch.zeros(VOCAB_SIZE).index_fill(0, torch.arange(5, 20), -torch.inf))
    decoder = TreeDecoder(model, torch.tensor([[5, 6, 7], [8, 9, 10], [7, 7, 9]]))
    every = decoder.logits(decoder.prompt_hidden).double() / 0.7
    for chosen in ([0, 3, 4, VOCAB_SIZE - 1], [9], range(VOCAB_SIZE)):
        ids = torch.tensor(chosen)
        logits, normalizers = decoder.normalized_logits(decoder.prompt_hidden, ids, 0.7)
        torch.testing.assert_close(logits.double(), every[:, ids], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(normalizers.double(), every.logsumexp(-1), rtol=1e-6, atol=1e-5)


def test_the_head_follows_its_weights_and_the_selection():
    model = LlamaForCausalLM(LlamaConfig(**{**tiny_model("llama").config.to_dict()})).eval()
    decoder, chosen = TreeDecoder(model, torch.tensor([[5, 6]])), torch.tensor([4, 5])
    decoder.logits(decoder.prompt_hidden, chosen)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    chosen[0] = 9
    expected = decoder.logits(decoder.prompt_hidden)[:, chosen]
    torch.testing.assert_close(decoder.logits(decoder.prompt_hidden, chosen), expected)


def test_bfloat16_is_as_close_as_the_plain_model_is():
    model = LlamaForCausalLM(tiny_model("llama").config).eval()
    prompt, path = [5, 6, 7, 8], [9, 10, 11]
    exact = logits_behind(model.double(), [(prompt, path)])
    plain = (logits_behind(model.bfloat16(), [(prompt, path)]) - exact).abs().max()
    decoder = TreeDecoder(model, torch.tensor([prompt]))
    _, hidden = decoder.extend([int(decoder.prompt_slots[0]), ~0, ~1], path)
    assert (decoder.logits(hidden[-1:]) - exact).abs().max() <= 2 * plain + 0.05


def test_prompts_are_stored_once_and_dropped_slots_used_again():
    model = tree_model("llama")
    decoder = TreeDecoder(model, torch.randint(FIRST_TOKEN, VOCAB_SIZE, (3, 50)))
    config = model.config
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    for _ in range(20):
        decoder.extend(np.repeat(decoder.prompt_slots, 10), np.full(30, 9))
        decoder.keep([])
    prompts, tree = decoder.nbytes
    assert prompts == 3 * 50 * token_bytes
    assert tree <= 2 * 33 * token_bytes
    assert decoder.num_slots == 3


def test_an_error_leaves_model_and_decoder_as_they_were(monkeypatch):
    model = tree_model("llama")
    decoder = TreeDecoder(model, torch.tensor([[5, 6]]))
    monkeypatch.setattr(model.model.layers[1].mlp.down_proj, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.extend(decoder.prompt_slots, [7])
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.undo()
    assert decoder.num_slots == 1
    decoder.extend(decoder.prompt_slots, [7])
    assert model(torch.tensor([[5, 6]])).logits.shape == (1, 2, VOCAB_SIZE)


def test_a_prompt_that_fails_leaves_the_others_as_they_were(monkeypatch):
    model = tree_model("llama")
    tree = Tree(model, [[5, 6]])
    monkeypatch.setattr(model.model.layers[1].mlp.down_proj, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tree.decoder.add_prompts(torch.tensor([[7, 8, 9]]))
    monkeypatch.undo()
    slots, hidden = tree.decoder.add_prompts(torch.tensor([[10]]))
    tree.prompts.append([10])
    tree.paths[int(slots[0])] = (1, [])
    tree.compare(slots, hidden)
    tree.extend([int(slots[0]), int(tree.decoder.prompt_slots[0])], [11, 12])


def test_each_device(device):
    model = copy.deepcopy(tree_model("Gemma2")).to(device)
    ids, mask = padded([[5, 6, 7, 8, 9], [10]], "left")
    decoder = TreeDecoder(model, ids.to(device), mask.to(device))
    first, second = decoder.prompt_slots.tolist()
    _, hidden = decoder.extend([first, ~0, second], torch.tensor([11, 12, 13], device=device))
    expected = logits_behind(tree_model("Gemma2"), [([5, 6, 7, 8, 9], [11]), ([5, 6, 7, 8, 9], [11, 12]), ([10], [13])])
    torch.testing.assert_close(decoder.logits(hidden).cpu(), expected, rtol=1e-4, atol=1e-4)
    some = decoder.logits(hidden, torch.tensor([3, 40], device=device)).cpu()
    torch.testing.assert_close(some, expected[:, [3, 40]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", SOME_WAYS)
@pytest.mark.parametrize("whole_model", [False, True])
def test_compiled_models_run_uncompiled_and_stay_compiled(way, whole_model):
    ids = torch.tensor([[5, 6]])
    model = compiled(tree_model("llama"), way)
    with pytest.warns(UserWarning, match="runs uncompiled") as warned:
        ours = TreeDecoder(model, ids, whole_model=whole_model)
    plain = TreeDecoder(tree_model("llama"), ids, whole_model=whole_model)
    for decoder in (ours, plain):
        decoder.add_prompts(torch.tensor([[7, 8, 9]]))
        decoder.hidden = decoder.extend([int(decoder.prompt_slots[0]), ~0], [3, 4])[1]
    torch.testing.assert_close(ours.hidden, plain.hidden)
    torch.testing.assert_close(ours.logits(ours.hidden), plain.logits(plain.hidden))
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert still_compiled(model, ids)


def test_adapters_count():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        copy.deepcopy(tree_model("llama")),
        peft.LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    ).eval()
    prompt, path = [5, 6, 7], [8, 9]
    decoder = TreeDecoder(model, torch.tensor([prompt]))
    _, hidden = decoder.extend([int(decoder.prompt_slots[0]), ~0], path)
    expected = logits_behind(model.get_base_model(), [(prompt, path)])
    torch.testing.assert_close(decoder.logits(hidden[-1:]), expected, rtol=1e-4, atol=1e-4)
    some = decoder.logits(hidden[-1:], torch.tensor([4, 30]))
    torch.testing.assert_close(some, expected[:, [4, 30]], rtol=1e-4, atol=1e-4)


def test_linear_attention_runs_on_whole_paths():
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.3
    )
    tree = Tree(MambaForCausalLM(config).eval(), [[5, 6, 7], [8, 9, 10]])
    first, second = (int(slot) for slot in tree.decoder.prompt_slots)
    tree.extend([first, ~0, second, first], [11, 12, 13, 14])


def test_what_cannot_be_served_is_refused_by_name():
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="training mode"):
        TreeDecoder(LlamaForCausalLM(tiny_model("llama").config).train(), ids)
    with pytest.raises(ValueError, match="LlamaModel has no LM head"):
        TreeDecoder(tiny_model("llama").model, ids)
    with pytest.raises(TypeError, match="Linear, expected a transformers PreTrainedModel"):
        TreeDecoder(torch.nn.Linear(2, 2), ids)
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="row 1 has a hole"):
        TreeDecoder(model, torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [1, 0, 1]]))
    with pytest.raises(ValueError, match="row 0 has no token"):
        TreeDecoder(model, torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="encoder_outputs: LlamaForCausalLM has no encoder"):
        TreeDecoder(model, encoder_outputs=torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        TreeDecoder(model)
    decoder = TreeDecoder(model, ids)
    slot = int(decoder.prompt_slots[0])
    for parents, tokens, message in (
        ([slot], [VOCAB_SIZE], r"tokens\[0\] is 48"),
        ([slot, 77], [5, 6], r"parents\[1\] is 77, not a slot"),
        ([slot, ~1], [5, 6], r"parents\[1\] is -2: row 1 of this call is not an earlier row"),
        ([slot], [5, 6], "expected both"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.extend(parents, tokens)
    assert decoder.num_slots == 1
    with pytest.raises(ValueError, match="not a slot in use"):
        decoder.keep([5])


@given(st.data())
def test_slots_keep_a_forest(data):
    slots = TreeSlots()
    paths = {int(slot): () for slot in slots.add_prompts(np.array([3, 5]))}
    roots = set(paths)
    for _ in range(data.draw(st.integers(1, 8))):
        count = data.draw(st.integers(1, 6))
        parents = [data.draw(st.sampled_from([*paths, *(~j for j in range(row))])) for row in range(count)]
        added = slots.add_rows(np.array(parents), np.arange(count))
        assert not set(added.tolist()) & set(paths)
        for slot, parent in zip(added.tolist(), parents, strict=True):
            above = int(added[~parent]) if parent < 0 else parent
            paths[slot] = (slot, *paths[above])
        if data.draw(st.booleans()):
            kept = data.draw(st.lists(st.sampled_from(list(paths)), max_size=3))
            slots.keep(np.array(kept, dtype=np.int64))
            alive = roots.union(kept, *(paths[slot] for slot in kept))
            paths = {slot: path for slot, path in paths.items() if slot in alive}
        every = np.array(list(paths))
        assert [tuple(row[row >= 0].tolist()) for row in slots.ancestors(every)] == list(paths.values())
        assert slots.depths_of(every).tolist() == [len(path) for path in paths.values()]
        assert slots.num_live == len(paths)


def test_layers_that_attend_to_something_else_than_they_store_are_refused():
    keys, values = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4)
    nothing = torch.empty(3, 0, dtype=torch.int64)
    step = Step(None, nothing, nothing.bool(), [], stored={0: (keys, values)})
    module = torch.nn.Identity()
    tree_attention._refuse_others(module, step, 0, keys, values.clone())
    tree_attention._refuse_others(module, step, 0, keys.double(), values)
    for own in (keys * 2, keys[..., :2], torch.cat([keys, keys], dim=1)):
        with pytest.raises(UnsupportedModelError, match="Identity of layer 0 attends to other keys and values"):
            tree_attention._refuse_others(module, step, 0, own, values)


def test_a_model_that_fails_on_packed_rows_runs_on_padded_ones(monkeypatch):
    model, ids = tree_model("llama"), torch.tensor([[5, 6]])
    packed = TreeDecoder(model, ids)

    def failing(error):
        def encode(*_, **__):
            raise error

        monkeypatch.setattr(PackedForward, "encode", encode)

    failing(TypeError("'NoneType' object is not subscriptable"))  # such as of a mask that is not there
    padded = TreeDecoder(model, ids)
    assert (packed.packed, padded.packed) == (True, False)
    torch.testing.assert_close(padded.prompt_hidden, packed.prompt_hidden)
    failing(torch.OutOfMemoryError("no room"))
    with pytest.raises(torch.OutOfMemoryError):
        TreeDecoder(model, ids)
