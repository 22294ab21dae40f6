"""``BearTrainer`` and ``TrieLoss`` against the loss of the whole batch, written out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BEGIN, END, PAD, TURN_END, VOCAB_SIZE, tiny_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gentrie import TokenTrie
from gentrie.training import (
    AdaptiveTau,
    ItemCollator,
    LogsRecommendations,
    RecommendationCallback,
    TrieLoss,
    bear_loss,
    linear_masked_softmax_loss,
    masked_softmax_loss,
)
from gentrie.training.recommendation_callback import beam_recommend

pytest.importorskip("accelerate")

from gentrie.training import BearTrainer

ITEMS = [[10, 11, 12], [10, 11, 13], [10, 14], [15], [16, 17, 18, 19], [16, 17, 18, 20], [21, 22]]
TRIE = TokenTrie.from_sequences(ITEMS, vocab_size=VOCAB_SIZE, end_token_id=END)
OPTIONS = {"beam_width": 2, "reg_weight": 0.7, "reg_temperature": 1.5}
FEATURES = [{"prompt_ids": [30 + i, 31, 32][: 1 + i % 3], "response_ids": [*ITEMS[i % 7], END]} for i in range(8)]


def model_of(kind: str) -> PreTrainedModel:
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": END,
        "initializer_range": 0.5,
    }
    torch.manual_seed(0)
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=3.0))
    if kind == "cohere":
        return CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25))
    model = copy.deepcopy(tiny_model(kind))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 8,
            "max_steps": 1,
            "learning_rate": 0.1,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        },
    )


def sgd_step(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parameters after one step at rate 0.1."""
    loss.backward()
    return {
        name: (weight - 0.1 * weight.grad if weight.grad is not None else weight).detach()
        for name, weight in model.named_parameters()
    }


def written_out(model: PreTrainedModel, loss: Any = bear_loss, **options: Any) -> torch.Tensor:
    """The loss of all features by the model's own logits, one row after the other."""
    total, count = torch.zeros(()), 0
    for feature in FEATURES:
        prompt, response = feature["prompt_ids"], feature["response_ids"]
        if model.config.is_encoder_decoder:
            labels = torch.tensor([[-100] * len(prompt) + response])
            ids = torch.tensor([[*prompt, *response]])
            logits = model(
                input_ids=ids, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=labels)
            ).logits[0, len(prompt) :]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        total = total + loss(logits[None], torch.tensor([response]), trie=TRIE, reduction="sum", **options)
        count += len(response)
    return total / count


def same_parameters(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, expected[name], rtol=1e-4, atol=1e-5), name


# Behind padding on the left GPT-2 counts other positions than it does alone.
@pytest.mark.parametrize(
    ("kind", "padding_side"),
    [("llama", "right"), ("llama", "left"), ("gpt2", "right"), ("gemma2", "left"), ("cohere", "right")],
)
def test_a_step_is_that_of_the_written_out_loss(kind: str, padding_side: Any, tmp_path: Path) -> None:
    model = model_of(kind)
    reference = copy.deepcopy(model)
    expected = sgd_step(reference, written_out(reference, **OPTIONS))
    collator = ItemCollator(TRIE, PAD, padding_side=padding_side)
    trainer = BearTrainer(
        model, arguments(tmp_path), train_dataset=FEATURES, data_collator=collator, trie=TRIE, loss_options=OPTIONS
    )
    trainer.train()
    same_parameters(model, expected)


def test_no_logit_is_computed(tmp_path: Path) -> None:
    model = model_of("llama")
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: rows.append(out.shape[1]))
    trainer = BearTrainer(
        model,
        arguments(tmp_path, max_steps=3),
        train_dataset=FEATURES,
        data_collator=ItemCollator(TRIE, PAD),
        trie=TRIE,
    )
    trainer.train()
    assert rows == [1, 0, 0]  # the first step compares one row with the model's own logits


@pytest.mark.parametrize("states_given", [True, False])
def test_accumulation_equals_one_batch(states_given: bool, tmp_path: Path) -> None:
    collator = ItemCollator(TRIE, PAD)

    def collate(features: Any) -> dict[str, torch.Tensor]:
        batch = collator(features)
        if not states_given:
            del batch["states"]
        return batch

    model = model_of("llama")
    reference = copy.deepcopy(model)
    expected = sgd_step(reference, written_out(reference, **OPTIONS))
    trainer = BearTrainer(
        model,
        arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4),
        train_dataset=FEATURES,
        data_collator=collate,
        trie=TRIE,
        loss_options=OPTIONS,
    )
    trainer.train()
    same_parameters(model, expected)


def test_trie_loss_equals_the_trainer(tmp_path: Path) -> None:
    model = model_of("llama")
    reference = copy.deepcopy(model)
    expected = sgd_step(reference, written_out(reference, masked_softmax_loss))

    class Plain(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs.pop("states")
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Plain(
        model,
        arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, remove_unused_columns=False),
        train_dataset=FEATURES,
        data_collator=ItemCollator(TRIE, PAD),
        compute_loss_func=TrieLoss(TRIE, masked_softmax_loss),
    )
    trainer.train()
    same_parameters(model, expected)


@pytest.mark.parametrize("by_logits", [False, True])
def test_statistics_on_request(by_logits: bool, tmp_path: Path) -> None:
    """Those of the loss written out, and a step that is the same with them and without."""
    trained = []
    for asked in (False, True):
        model = model_of("llama")
        options: dict[str, Any] = {"return_stats": True} if asked else {}
        loss = TrieLoss(TRIE, bear_loss, **OPTIONS, **options)
        collate = ItemCollator(TRIE, PAD)
        shared: dict[str, Any] = {
            "train_dataset": FEATURES,
            "data_collator": lambda rows, collate=collate: {k: v for k, v in collate(rows).items() if k != "states"},
        }
        before = copy.deepcopy(model)
        how = arguments(tmp_path, remove_unused_columns=False)
        trainer: Any
        if by_logits:
            trainer = Trainer(model, how, compute_loss_func=loss, **shared)
        else:
            trainer = BearTrainer(model, how, trie=TRIE, loss_options={**OPTIONS, **options}, **shared)
        trainer.train()
        stats = loss.stats if by_logits else trainer.loss_stats
        trained.append(dict(model.named_parameters()))
        assert (stats is not None) == asked
    expected = [
        bear_loss(
            before(input_ids=torch.tensor([[*one["prompt_ids"], *one["response_ids"]]])).logits[
                :, len(one["prompt_ids"]) - 1 : -1
            ],
            torch.tensor([one["response_ids"]]),
            trie=TRIE,
            return_stats=True,
            **OPTIONS,
        )[1]
        for one in FEATURES
    ]
    assert stats.num_labels == sum(one.num_labels for one in expected)
    assert stats.num_branching == sum(one.num_branching for one in expected)
    mean = sum(float(one.mean_log_prob) * one.num_labels for one in expected) / stats.num_labels
    assert float(stats.mean_log_prob) == pytest.approx(mean, rel=1e-4)
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items())


def test_items_inside_free_text(tmp_path: Path) -> None:
    """Free text is scored over the whole vocabulary, items over what is valid there."""
    response = [30, BEGIN, *ITEMS[0], END, 31, BEGIN, *ITEMS[4], END, TURN_END]
    features = [{"prompt_ids": [33, 34], "response_ids": response}]
    model = model_of("llama")
    logits = model(input_ids=torch.tensor([[33, 34, *response]])).logits[0, 1:-1]
    expected, state = torch.zeros(()), -2
    for row, token in enumerate(response):
        valid = torch.arange(VOCAB_SIZE) if state == -2 else torch.from_numpy(TRIE.next_tokens(state)).long()
        expected = expected + logits[row, valid].logsumexp(0) - logits[row, token]
        if state == -2:
            state = 0 if token == BEGIN else -2
        else:
            state = TRIE.advance(state, token)
            state = -2 if TRIE.is_leaf(state) else state
    trainer = BearTrainer(
        model,
        arguments(tmp_path),
        eval_dataset=features,
        data_collator=ItemCollator(TRIE, PAD, begin_token_id=BEGIN),
        trie=TRIE,
        loss=linear_masked_softmax_loss,
        loss_options={"normalizer": float(len(response))},
        begin_token_id=BEGIN,
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item() / len(response), rel=1e-5)


def test_encoder_decoder(tmp_path: Path) -> None:
    model = model_of("t5").eval()
    expected = written_out(model, **OPTIONS).item()

    def collate(features: Any) -> dict[str, torch.Tensor]:
        rows = [ItemCollator(TRIE, PAD)([feature]) for feature in features]
        width = max(row["labels"].shape[1] for row in rows)
        fill = {"input_ids": PAD, "attention_mask": 0, "labels": -100, "states": -2}
        return {
            name: torch.cat(
                [torch.nn.functional.pad(row[name], (0, width - row[name].shape[1]), value=value) for row in rows]
            )
            for name, value in fill.items()
        }

    trainer = BearTrainer(
        model, arguments(tmp_path), eval_dataset=FEATURES, data_collator=collate, trie=TRIE, loss_options=OPTIONS
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_adapters_and_checkpointing(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        model_of("llama"),
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    # "gradient" before transformers 5.24.
    checkpointing = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
    kwargs = {f"{checkpointing}_checkpointing_kwargs": {"use_reentrant": False}}
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    reference = copy.deepcopy(model)
    expected = sgd_step(reference, written_out(reference, **OPTIONS))
    trainer = BearTrainer(
        model,
        arguments(tmp_path, **{f"{checkpointing}_checkpointing": True}, **kwargs),
        train_dataset=FEATURES,
        data_collator=ItemCollator(TRIE, PAD),
        trie=TRIE,
        loss_options=OPTIONS,
    )
    trainer.train()
    same_parameters(model, expected)
    for name, weight in model.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", {"target_modules": ["lm_head"], "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": [10, 15, END], "fan_in_fan_out": True}),
    ],
    ids=["modules_to_save", "lora", "dora", "tokens of a tied head"],
)
def test_adapters_on_the_head(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    model = peft.get_peft_model(model_of(kind), config)
    reference = copy.deepcopy(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    expected = sgd_step(reference, written_out(reference, **OPTIONS))
    BearTrainer(
        model,
        arguments(tmp_path),
        train_dataset=FEATURES,
        data_collator=ItemCollator(TRIE, PAD),
        trie=TRIE,
        loss_options=OPTIONS,
        callbacks=[RecommendationCallback(TRIE, [[30]], [0], pad_token_id=PAD, ks=(3,))],
        eval_dataset=FEATURES,
    ).train()
    same_parameters(model, expected)
    moved = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert any("lm_head" in name or "trainable_tokens_delta" in name for name in moved)


def test_dropout_of_an_adapter_on_the_head(tmp_path: Path) -> None:
    """The first step compares logits without it, and trains with it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["lm_head"], lora_dropout=0.5, init_lora_weights=False)
    model = peft.get_peft_model(model_of("llama"), config)
    common = {"train_dataset": FEATURES, "data_collator": ItemCollator(TRIE, PAD), "trie": TRIE}
    trainer = BearTrainer(model, arguments(tmp_path, max_steps=2), **common)
    modes: list[bool] = []
    dropout = model.get_output_embeddings().lora_dropout["default"]
    dropout.register_forward_hook(lambda module, _inputs, _output: modes.append(module.training))
    trainer.train()
    assert modes == [False, False, True, True, True]  # model and check, then the loss; model and loss


def test_bfloat16_autocast(tmp_path: Path) -> None:
    model = model_of("llama")
    reference = copy.deepcopy(model)
    expected = written_out(reference, **OPTIONS).item()
    trainer = BearTrainer(
        model,
        arguments(tmp_path, bf16=True),
        train_dataset=FEATURES,
        data_collator=ItemCollator(TRIE, PAD),
        trie=TRIE,
        loss_options=OPTIONS,
    )
    assert trainer.train().training_loss == pytest.approx(expected, rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    searched = beam_recommend(model.eval(), [[30], [31, 32]], 3, trie=TRIE, pad_token_id=PAD)
    assert searched.min() >= 0  # the autocast that training leaves around the model is in nobody's way


def test_several_trainers_in_bfloat16(tmp_path: Path) -> None:
    """Each trainer leaves one more autocast around the model."""
    model = model_of("llama")
    for _ in range(3):
        BearTrainer(
            model,
            arguments(tmp_path, bf16=True),
            train_dataset=FEATURES,
            data_collator=ItemCollator(TRIE, PAD),
            trie=TRIE,
        ).train()
    assert beam_recommend(model.eval(), [[30], [31, 32]], 3, trie=TRIE, pad_token_id=PAD).min() >= 0


def test_adaptive_temperature_learns(tmp_path: Path) -> None:
    tau = AdaptiveTau(eta=0.9)
    before = float(tau.value)
    trainer = BearTrainer(
        model_of("llama"),
        arguments(tmp_path, max_steps=4),
        train_dataset=FEATURES,
        data_collator=ItemCollator(TRIE, PAD),
        trie=TRIE,
        loss=linear_masked_softmax_loss,
        adaptive_tau=tau,
    )
    trainer.train()
    assert float(tau.value) != before


def test_another_catalog_on_the_same_model(tmp_path: Path) -> None:
    """Cross-domain (RecLM-cgen, table 5): one model, a catalog that it was not trained on."""
    model = model_of("llama")
    common = {"data_collator": ItemCollator(TRIE, PAD), "trie": TRIE}
    BearTrainer(model, arguments(tmp_path, max_steps=5), train_dataset=FEATURES, **common).train()
    items = [[40, 41], [40, 42, 43], [44]]
    other = TokenTrie.from_sequences(items, vocab_size=VOCAB_SIZE, end_token_id=END)
    features = [{"prompt_ids": [30], "response_ids": [*item, END]} for item in items]
    trainer = BearTrainer(
        model,
        arguments(tmp_path),
        eval_dataset=features,
        data_collator=ItemCollator(other, PAD),
        trie=other,
        loss=linear_masked_softmax_loss,
        callbacks=[RecommendationCallback(other, [[30], [31, 32]], [0, 2], pad_token_id=PAD, ks=(1, 3))],
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert metrics["eval_hr@3"] == 1.0  # all that this catalog holds
    assert beam_recommend(model, [[30], [31, 32]], 3, trie=other, pad_token_id=PAD).min() >= 0
    with pytest.raises(ValueError, match=r"features\[0\]: token 40 at position 0 of response_ids leaves the catalog"):
        ItemCollator(TRIE, PAD)(features)


class Logger(TrainerCallback):
    """What loggers are called with."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append(dict(logs))


def judge() -> RecommendationCallback:
    return RecommendationCallback(TRIE, [[30], [31, 32]], [0, 2], pad_token_id=PAD, ks=(1, 3))


def test_recommendations_reach_loggers_and_the_history_of_a_resumed_run(tmp_path: Path) -> None:
    names = {"eval_hr@1", "eval_ndcg@1", "eval_hr@3", "eval_ndcg@3"}
    common = {"train_dataset": FEATURES, "data_collator": ItemCollator(TRIE, PAD), "trie": TRIE}
    how = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    how |= {"metric_for_best_model": "eval_hr@3", "save_only_model": False}
    logger, callback = Logger(), judge()
    trainer = BearTrainer(
        model_of("llama"),
        arguments(tmp_path, max_steps=2, **how),
        eval_dataset={"first": FEATURES, "second": FEATURES[:3]},
        callbacks=[callback, logger],
        **common,
    )
    trainer.train()
    logged = [entry for entry in logger.seen if names <= set(entry)]
    assert [set(entry) & {"eval_first_loss", "eval_second_loss"} for entry in logged] == [{"eval_first_loss"}] * 2
    assert [entry for entry in trainer.state.log_history if names <= set(entry)] == [
        {**entry, "step": step} for step, entry in enumerate(logged, 1)
    ]
    assert [row["step"] for row in callback.history] == [1, 2]
    assert trainer.state.best_metric == max(row["eval_hr@3"] for row in callback.history)
    resumed = judge()
    trainer = BearTrainer(
        model_of("llama"),
        arguments(tmp_path, max_steps=3, **how),
        eval_dataset=FEATURES,
        callbacks=[resumed],
        **common,
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.history[:2] == callback.history
    assert [row["step"] for row in resumed.history] == [1, 2, 3]


@pytest.mark.parametrize("logs", [True, False])
def test_recommendations_under_another_trainer(logs: bool, tmp_path: Path) -> None:
    class Logging(LogsRecommendations, Trainer):
        pass

    logger, callback = Logger(), judge()
    trainer = (Logging if logs else Trainer)(
        model_of("llama"),
        arguments(tmp_path, remove_unused_columns=False),
        eval_dataset=FEATURES,
        data_collator=lambda rows: {k: v for k, v in ItemCollator(TRIE, PAD)(rows).items() if k != "states"},
        compute_loss_func=TrieLoss(TRIE),
        callbacks=[callback, logger],
    )
    found = trainer.evaluate()
    assert found["eval_hr@3"] == callback.history[0]["eval_hr@3"]
    assert len(callback.history) == 1
    assert sum("eval_hr@3" in entry for entry in trainer.state.log_history) == 1
    assert sum("eval_hr@3" in entry for entry in logger.seen) == logs


def test_bad_arguments(tmp_path: Path) -> None:
    model, args = model_of("llama"), arguments(tmp_path)
    with pytest.raises(TypeError, match="trie is a list, expected a TokenTrie"):
        BearTrainer(model, args, trie=[])
    with pytest.raises(ValueError, match="normalizer='weights' divides each micro-batch by its own sum"):
        BearTrainer(model, args, trie=TRIE, loss_options={"normalizer": "weights"})
    with pytest.raises(ValueError, match="normalizer='branching'"):
        TrieLoss(TRIE, normalizer="branching")
    with pytest.raises(ValueError, match="compute_metrics is given"):
        BearTrainer(model, args, trie=TRIE, compute_metrics=lambda _: {})
    with pytest.raises(ValueError, match="adaptive_tau is given, and loss_options"):
        BearTrainer(model, args, trie=TRIE, adaptive_tau=AdaptiveTau(), loss_options={"tau": 2.0})
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1"):
        BearTrainer(model, arguments(tmp_path, label_smoothing_factor=0.1), trie=TRIE)
    with pytest.raises(ValueError, match="begin_token_id"):
        BearTrainer(model, args, trie=TRIE, begin_token_id=VOCAB_SIZE)
    with pytest.raises(ValueError, match="a batch lacks labels"):
        BearTrainer(model, args, trie=TRIE).compute_loss(model, {"input_ids": torch.ones(1, 2, dtype=torch.int64)})
