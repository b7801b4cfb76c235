"""A group that exceeds the token budget: the memory of one budget, and the gradient of the group as a whole."""

import torch
from peft import LoraConfig

from conftest import make_model, make_tokenizer
from naysay.training.config import D2OConfig
from naysay.training.trainer import D2OTrainer
from peak_bytes import PeakBytes

ANSWER = 16
ENOUGH = 100_000


class Measured(D2OTrainer):
    """Keeps the most bytes that a training step had beside the model, gradients among them, and the gradients."""

    def training_step(self, model, *args):
        with PeakBytes(model) as seen:
            loss = super().training_step(model, *args)
        self.peak = seen.peak
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return loss


def step_of(path, anchors, *, budget, lora=True):
    """One optimizer step on one group with a prompt of 29 tokens and answers of 16."""
    ids = torch.Generator().manual_seed(0)
    answers = torch.randint(3, 250, (anchors + 1, ANSWER), generator=ids).tolist()
    trainer = Measured(
        model=make_model(dtype=torch.float64, max_position_embeddings=2048),
        args=D2OConfig(
            output_dir=str(path),
            max_steps=1,
            tokens_per_microbatch=budget,
            per_device_train_batch_size=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=[{"prompt": "x" * 10, "rejected": [answers[0]], "anchors": answers[1:]}],
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear") if lora else None,
    )
    trainer.train()
    return trainer


def test_eight_budgets_need_the_memory_of_one(tmp_path):
    """Bytes of all tensors that a step makes, the gradients of the adapter among them; weights are not counted.

    The prompt is short against the answers. With a long one memory holds as well, since a part and its prompt together
    fit into the budget; time does not, since each part computes the prompt anew. Only where the prompt and a single
    answer exceed the budget is the memory that of the two.
    """
    one = step_of(tmp_path / "one", 7, budget=ENOUGH)
    budget = one.train_dataset.costs[0]
    assert budget == 29 + 8 * (ANSWER - 1)
    parts = step_of(tmp_path / "parts", 78, budget=budget)
    joint = step_of(tmp_path / "joint", 78, budget=ENOUGH)
    assert parts.train_dataset.costs[0] >= 8 * budget
    assert joint.peak > 6 * one.peak
    assert parts.peak <= 1.3 * one.peak
    assert_equal(parts.gradients, joint.gradients)


def test_two_passes_give_the_gradient_of_all_weights(tmp_path):
    parts = step_of(tmp_path / "parts", 76, budget=157, lora=False)
    joint = step_of(tmp_path / "joint", 76, budget=ENOUGH, lora=False)
    assert_equal(parts.gradients, joint.gradients)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
