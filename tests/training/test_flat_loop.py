"""The method as a flat loop without abstractions gives the loss curve of `D2OTrainer`."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import make_model, make_tokenizer
from naysay.training.balance import Dealing
from naysay.training.config import D2OConfig
from naysay.training.data import GroupSampler, encode_rows
from naysay.training.trainer import D2OTrainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "flat_loop.py"
BATCH, EPOCHS, LEARNING_RATE = 2, 3, 1e-3


@pytest.fixture(scope="module")
def flat_loop():
    spec = importlib.util.spec_from_file_location("flat_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_flat_loop_gives_the_loss_curve_of_the_trainer(tmp_path, rows, flat_loop):
    rows = rows[:5]  # ragged: the last step of each epoch has one group
    trainer = D2OTrainer(
        model=make_model(),
        args=D2OConfig(
            output_dir=str(tmp_path),
            alpha=0.3,
            beta=0.2,
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1e6,
            tokens_per_microbatch=150,  # several micro-batches a step
            optim="adamw_torch",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=5,
            data_seed=0,  # 0 is a seed like any other
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        processing_class=make_tokenizer(),
    )
    trainer.train()
    expected = [row["loss"] for row in trainer.state.log_history if "loss" in row]

    encoded, _ = encode_rows(rows, make_tokenizer(), max_length=1024)
    groups = [(list(g.prompt_ids), [list(y) for y in g.anchors], [list(y) for y in g.negatives]) for g in encoded]
    order, sampler = [], GroupSampler([1] * len(groups), seed=0, dealt=Dealing(ranks=1, groups=BATCH))
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        shuffled = list(sampler)
        order += [shuffled[start : start + BATCH] for start in range(0, len(shuffled), BATCH)]
    found = flat_loop.train(make_model(), groups, order, alpha=0.3, beta=0.2, learning_rate=LEARNING_RATE)

    assert len(expected) == len(found) == 9
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[0] == pytest.approx(math.log(2), abs=1e-5)
    assert found[-1] < found[0] - 0.1


def test_the_trained_log_prob_is_the_sum_over_response_tokens(flat_loop):
    """Against a product of conditional probabilities, one token at a time."""
    model = make_model(dtype=torch.float64)
    prompt, response = [256, 5, 9], [7, 6, 257]
    expected = 0.0
    for i, token in enumerate(response):
        logits = model(input_ids=torch.tensor([prompt + response[:i]])).logits[0, -1]
        expected += logits.softmax(-1)[token].log().item()
    assert flat_loop.log_prob(model, prompt, response).item() == pytest.approx(expected, rel=1e-6)


def test_the_example_runs_and_its_loss_falls():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    label, *losses = done.stdout.split()
    losses = [float(loss) for loss in losses]
    assert label == "loss:"
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0] - 0.01
    assert len(losses) == 10


def test_every_example_is_short():
    for path in EXAMPLE.parent.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80, path
