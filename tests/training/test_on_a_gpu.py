"""D2OTrainer on a CUDA device: the steps of a CPU in float32, and half precision that learns and goes on where it
stopped."""

import pytest
import torch
from peft import LoraConfig

from conftest import make_model, make_tokenizer
from naysay.training.config import D2OConfig
from naysay.training.trainer import D2OTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]

ROWS = [
    {"prompt": f"question {i}", "rejected": "no " * (2 + i % 3), "anchors": [f"yes {i}", "surely", "well"][: 1 + i % 3]}
    for i in range(8)
]


def fitted(path, *, dtype, steps=6, resume=None, lora=True, **changes):
    settings = {
        "output_dir": str(path),
        "per_device_train_batch_size": 4,
        "max_steps": steps,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "save_steps": 3,
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 3,
        "dataloader_pin_memory": False,
    }
    trainer = D2OTrainer(
        model=make_model(dtype=dtype),
        args=D2OConfig(**settings | changes),
        train_dataset=ROWS,
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if lora else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_float32_takes_the_steps_of_a_cpu(tmp_path):
    on_gpu = fitted(tmp_path / "gpu", dtype=torch.float32)
    on_cpu = fitted(tmp_path / "cpu", dtype=torch.float32, use_cpu=True)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"bf16": True}, {"tokens_per_microbatch": 30}, {"activation_checkpointing": True}]
)
def test_half_precision_takes_about_the_same_steps(tmp_path, changes):
    """Also under autocast, in two passes, and with checkpointing."""
    half = fitted(tmp_path / "half", dtype=torch.bfloat16, **changes)
    whole = fitted(tmp_path / "whole", dtype=torch.float32)
    assert half == pytest.approx(whole, abs=0.05)
    assert half[-1] < half[0]


def test_all_weights_are_trained_in_mixed_precision(tmp_path):
    """Float32 weights, bfloat16 products."""
    settings = {"lora": False, "dtype": torch.float32, "learning_rate": 1e-3}
    mixed = fitted(tmp_path / "mixed", bf16=True, **settings)
    whole = fitted(tmp_path / "whole", **settings)
    assert mixed == pytest.approx(whole, abs=0.05)
    assert mixed[-1] < mixed[0]


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = fitted(tmp_path / "whole", dtype=torch.bfloat16, steps=6)
    fitted(tmp_path / "parts", dtype=torch.bfloat16, steps=3)
    taken, step = [], D2OTrainer.training_step
    monkeypatch.setattr(D2OTrainer, "training_step", lambda *args, **more: taken.append(1) or step(*args, **more))
    rest = fitted(tmp_path / "parts", dtype=torch.bfloat16, steps=6, resume=True)
    assert len(taken) == 3
    assert rest[-1] == pytest.approx(whole[-1], abs=0.02)
