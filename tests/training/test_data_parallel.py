"""``BearTrainer`` in two processes takes the step of one process with the whole batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("accelerate")


def _train(rank: int, world_size: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from test_trainer import FEATURES, OPTIONS, PAD, TRIE, arguments, model_of

    from gentrie.training import BearTrainer, ItemCollator

    model = model_of("llama")
    trainer = BearTrainer(
        model,
        arguments(
            Path(folder),
            per_device_train_batch_size=len(FEATURES) // world_size // 2,
            gradient_accumulation_steps=2,
            ddp_backend="gloo",
        ),
        train_dataset=FEATURES,
        data_collator=ItemCollator(TRIE, PAD),
        trie=TRIE,
        loss_options=OPTIONS,
    )
    trainer.train()
    if rank == 0:
        torch.save(model.state_dict(), Path(folder) / "model.pt")
    os._exit(0)  # DDP keeps gloo's threads alive; one that lets go of a tensor aborts an interpreter being finalised


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_two_processes_equal_one_batch(tmp_path: Path) -> None:
    from test_trainer import OPTIONS, model_of, same_parameters, sgd_step, written_out

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_train, args=(2, port, str(tmp_path)), nprocs=2)
    model, reference = model_of("llama"), model_of("llama")
    model.load_state_dict(torch.load(tmp_path / "model.pt"))
    same_parameters(model, sgd_step(reference, written_out(reference, **OPTIONS)))
