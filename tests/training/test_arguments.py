"""Every argument of wrong type, shape, range or device is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gentrie import TokenTrie
from gentrie.training import (
    AdaptiveTau,
    beam_search_objective,
    bear_loss,
    linear_bear_loss,
    linear_masked_softmax_loss,
    linear_sft_loss,
    linear_token_logprobs,
    masked_softmax_loss,
    sdpo_loss,
    sft_loss,
    token_logprobs,
)

TRIE = TokenTrie.from_sequences([[2, 5], [3, 5]], vocab_size=6)
LOGITS, LABELS = torch.zeros(2, 2, 6), torch.tensor([[2, 5], [3, 5]])
HIDDEN, HEAD = torch.zeros(2, 2, 4), torch.zeros(6, 4)


class Params4bit(torch.nn.Parameter):
    """Named as bitsandbytes names it."""


class PackedTensor(torch.Tensor):
    """A subclass that looks like floats from outside, as torchao's and quanto's do."""


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"logits": [[0.0]]}, TypeError, "logits is a list"),
        ({"logits": torch.zeros(2, 2, 6, dtype=torch.int64)}, TypeError, "logits has dtype torch.int64"),
        ({"logits": torch.zeros(2, 2, 5)}, ValueError, "5 tokens wide, fewer than the trie's vocab_size=6"),
        ({"logits": torch.zeros(2, 6)}, ValueError, "labels has shape (2, 2) and logits (2, 6)"),
        ({"labels": [[2, 5], [3, 5]]}, TypeError, "labels is a list"),
        ({"labels": torch.zeros(2, 2)}, TypeError, "labels has dtype torch.float32"),
        ({"labels": LABELS.to("meta")}, ValueError, "labels is on meta, expected cpu"),
        ({"trie": {"a": 1}}, TypeError, "trie is a dict"),
        ({"states": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, "states has shape (2, 1), labels has (2, 2)"),
        ({"states": torch.zeros(2, 2)}, TypeError, "states has dtype float32"),
        ({"states": torch.full((2, 2), -3)}, ValueError, "states[0][0]=-3 is no state"),
        ({"states": torch.full((2, 2), 12345)}, ValueError, "12345"),
        ({"beam_width": 0}, ValueError, "beam_width=0"),
        ({"beam_width": 1.5}, TypeError, "beam_width=1.5"),
        ({"reg_weight": -1.0}, ValueError, "reg_weight=-1.0 is negative"),
        ({"reg_weight": "1"}, TypeError, "reg_weight is a str"),
        ({"reg_temperature": 0.0}, ValueError, "reg_temperature=0.0 must be above 0"),
        ({"tau": 0.0}, ValueError, "tau=0.0 must be above 0"),
        ({"tau": float("inf")}, ValueError, "tau=inf is not finite"),
        ({"tau": torch.ones(2)}, ValueError, "tau has shape (2,)"),
        ({"tau": torch.tensor(-1.0)}, ValueError, "tau=-1.0 must be above 0"),
        ({"tau": torch.tensor(1.0, requires_grad=True)}, ValueError, "tau requires a gradient"),
        ({"scope": "catalog"}, ValueError, "scope='catalog'"),
        ({"form": "both"}, ValueError, "form='both'"),
        ({"sign": -1}, ValueError, "sign=-1"),
        ({"form": "reweighted", "sign": "negative"}, ValueError, 'sign="negative"'),
        ({"normalizer": "tokens"}, ValueError, "normalizer='tokens'"),
        ({"normalizer": 0}, ValueError, "normalizer=0.0 must be above 0"),
        ({"normalizer": True}, TypeError, "normalizer is a bool"),
        ({"normalizer": torch.tensor(0.0)}, ValueError, "normalizer=0.0"),
        ({"normalizer": 2.0, "reduction": "sum"}, ValueError, "normalizer=2.0 has no use with reduction='sum'"),
        ({"token_weights": torch.ones(2)}, ValueError, "token_weights has shape (2,), expected (2, 2)"),
        ({"token_weights": torch.ones(2, 2).long()}, TypeError, "token_weights has dtype torch.int64"),
        ({"sequence_weights": torch.ones(2, 2)}, ValueError, "sequence_weights has shape (2, 2), expected (2,)"),
        ({"sequence_weights": torch.ones(2, device="meta")}, ValueError, "sequence_weights is on meta"),
        ({"reduction": "average"}, ValueError, "reduction='average'"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index=0.5"),
        ({"on_invalid": "skip"}, ValueError, "on_invalid='skip'"),
    ],
)
def test_bear(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    everything = {"logits": LOGITS, "labels": LABELS, "trie": TRIE, **arguments}
    with pytest.raises(error) as raised:
        bear_loss(**everything)
    assert says in str(raised.value)


@pytest.mark.parametrize("loss", [linear_bear_loss, linear_masked_softmax_loss, linear_sft_loss, linear_token_logprobs])
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"hidden": None}, TypeError, "hidden is a NoneType"),
        ({"hidden": torch.zeros(2, 4)}, ValueError, "labels has shape (2, 2) and hidden (2, 4)"),
        ({"lm_head": None}, TypeError, "lm_head is a NoneType, expected the module"),
        (
            {"lm_head": torch.zeros(6, 3)},
            ValueError,
            "lm_head has shape (6, 3), expected [vocabulary, 4]",
        ),
        ({"lm_head": torch.zeros(5, 4)}, ValueError, ""),
        ({"lm_head": HEAD.to("meta")}, ValueError, "lm_head is on meta"),
        ({"lm_head": torch.zeros(6, 4, dtype=torch.int8)}, TypeError, "Tensor of torch.int8"),
        (
            {"lm_head": Params4bit(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)},
            TypeError,
            "Params4bit of torch.uint8: the rows of a quantised",
        ),
        ({"lm_head": HEAD.as_subclass(PackedTensor)}, TypeError, "PackedTensor of torch.float32"),
        ({"lm_head": HEAD.to(torch.float8_e4m3fn)}, TypeError, "torch.float8_e4m3fn"),
        ({"lm_head": torch.nn.Identity()}, TypeError, "the LM head is a Identity"),
        ({"lm_head": torch.nn.Linear(3, 6)}, ValueError, "lm_head has shape (6, 3), expected [vocabulary, 4]"),
        (
            {"lm_head": torch.nn.Linear(4, 6), "lm_head_bias": torch.zeros(6)},
            ValueError,
            "lm_head_bias is given beside a module",
        ),
        ({"lm_head_bias": torch.zeros(4)}, ValueError, "lm_head_bias has shape (4,), expected [6]"),
        ({"lm_head_bias": [0.0] * 6}, TypeError, "lm_head_bias is a list"),
        ({"lm_head_bias": torch.zeros(6, device="meta")}, ValueError, "lm_head_bias is on meta"),
        ({"logit_softcap": 0}, ValueError, "logit_softcap=0.0 must be above 0"),
        ({"logit_scale": -1.0}, ValueError, "logit_scale=-1.0 must be above 0"),
    ],
)
def test_head(loss: Any, arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    everything = {"hidden": HIDDEN, "lm_head": HEAD, "labels": LABELS, **arguments}
    if loss is not linear_sft_loss:
        everything["trie"] = TRIE
    with pytest.raises(error) as raised:
        loss(**everything)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"variant": "type_1"}, ValueError, "variant='type_1'"),
        ({"end_token_in_scope": 1}, ValueError, "end_token_in_scope=1"),
        ({"focal_gamma": -1.0}, ValueError, "focal_gamma=-1.0 is negative"),
        ({"focal_gamma": "2"}, TypeError, "focal_gamma is a str"),
        ({"focal_rows": "some"}, ValueError, "focal_rows='some'"),
    ],
)
def test_masked_softmax(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        masked_softmax_loss(LOGITS, LABELS, trie=TRIE, **arguments)


def test_others() -> None:
    with pytest.raises(ValueError, match="scope='all'"):
        token_logprobs(LOGITS, LABELS, trie=TRIE, scope="all")
    with pytest.raises(ValueError, match="logits is 0 tokens wide"):
        sft_loss(torch.zeros(2, 2, 0), LABELS)
    for name, value in (("initial", 0.0), ("eta", -1.0), ("alpha", 1.5), ("low", 9.0), ("warm_up", -1)):
        with pytest.raises(ValueError, match=name):
            AdaptiveTau(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"labels": LABELS}, ValueError, "labels has shape"),
        ({"reference_logprobs": None}, TypeError, "reference_logprobs is None"),
        ({"reference_logprobs": torch.zeros(2)}, ValueError, "reference_logprobs has shape"),
        ({"beta": 0.0}, ValueError, "beta=0.0"),
        ({"reduction": "median"}, ValueError, "reduction='median'"),
        ({"labels": torch.tensor([[[-100, -100], [2, 5]]])}, ValueError, r"labels\[0\] has no chosen sequence"),
        ({"labels": torch.tensor([[[2, 5], [-100, -100]]])}, ValueError, r"labels\[0\] has no rejected sequence"),
    ],
)
def test_sdpo(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    labels = arguments.get("labels", LABELS[None])
    everything = {"reference_logprobs": torch.zeros(1, 2), **arguments, "labels": labels}
    with pytest.raises(error, match=says):
        sdpo_loss(torch.zeros(*labels.shape, 6), trie=TRIE, **everything)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"labels": torch.tensor([2, 5])}, ValueError, "labels has shape"),
        ({"labels": torch.tensor([[-100, 2]])}, ValueError, r"labels\[0\] has labels behind ignored ones"),
        ({"beam_width": 0}, ValueError, "beam_width=0"),
        ({"tau": 0.0}, ValueError, "tau=0.0"),
        ({"reduction": "median"}, ValueError, "reduction='median'"),
    ],
)
def test_beam_search_objective(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    labels = arguments.get("labels", LABELS)
    options = {name: value for name, value in arguments.items() if name != "labels"}
    with pytest.raises(error, match=says):
        beam_search_objective(torch.zeros(*labels.shape, 6), labels, lambda *_: torch.zeros(1, 6), trie=TRIE, **options)
