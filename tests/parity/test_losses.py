"""Losses on the same log-probs as in TRL 1.16.0, value and gradient, in float64.

TRL's losses live inside trainer methods. Real trainers are built (tiny model) and their own `_compute_loss` is called
with a stand-in for the model that returns given log-probs per token, so that both sides read the same numbers. TRL
takes the mean over the rows of a batch; ours is unreduced, so the mean is taken here.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed; pip install -c constraints.txt -e '.[parity]'")

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from conftest import make_model, make_tokenizer
from naysay.core import baselines
from naysay.core.groups import Answers, GroupLogps
from naysay.core.objective import d2o_loss

pytestmark = [
    # transformers' own rename, which TRL 1.16.0 has not followed.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]
BETA = 0.3
QUIET = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none"}


@pytest.fixture
def dpo_trainer(tmp_path):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2
    trainer = DPOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=DPOConfig(output_dir=str(tmp_path), beta=BETA, **QUIET),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )
    trainer.precompute_ref_logps = True  # reference log-probs come with the batch
    return trainer


@pytest.fixture
def kto_trainer(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": False}]
    trainer = KTOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=KTOConfig(
            output_dir=str(tmp_path), beta=BETA, undesirable_weight=1.4, per_device_train_batch_size=2, **QUIET
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )
    trainer.precompute_ref_logps = True
    return trainer


@dataclass(frozen=True)
class Completions:
    """Log-probs per token [B, T − 1] (a leaf), where they count [B, T], and reference sums [B]."""

    token_logps: torch.Tensor
    mask: torch.Tensor
    ref_logps: torch.Tensor

    @property
    def counted(self) -> torch.Tensor:
        return self.token_logps * self.mask[:, 1:]

    @property
    def sums(self) -> torch.Tensor:
        return self.counted.sum(1)

    @property
    def tokens(self) -> torch.Tensor:
        return self.mask.sum(1).double()

    def output(self) -> SimpleNamespace:
        """What TRL's models return."""
        nothing = torch.zeros_like(self.token_logps)
        return SimpleNamespace(log_probs=self.counted, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def completions(seed, count, *, longest=6):
    """`count` answers of 1 to `longest` tokens after a prompt of 3."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    places = torch.arange(3 + longest)
    token_logps = -4 * torch.rand(count, 2 + longest, generator=generator, dtype=torch.float64)
    mask = ((places >= 3) & (places < 3 + lengths[:, None])).long()
    ref_logps = -2 * lengths * torch.rand(count, generator=generator, dtype=torch.float64) - lengths
    return Completions(token_logps.requires_grad_(), mask, ref_logps)


def trl_dpo(trainer, loss_type, answers):
    """TRL's loss of a batch whose first half are the chosen answers."""
    trainer.loss_types = [loss_type]
    trainer.loss_weights = [1.0]
    ref_chosen, ref_rejected = answers.ref_logps.chunk(2)
    batch = {
        "input_ids": torch.zeros_like(answers.mask),
        "attention_mask": torch.ones_like(answers.mask),
        "completion_mask": answers.mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return trainer._compute_loss(lambda **_: answers.output(), batch, False)


def group_of(answers, *, logps=None, ref_logps=None):
    """Our tensors of the same batch: one chosen and one rejected answer a prompt; the chosen one is also the anchor."""
    (chosen, rejected), (ref_chosen, ref_rejected) = (
        (answers.sums if logps is None else logps)[:, None].chunk(2),
        (answers.ref_logps if ref_logps is None else ref_logps)[:, None].chunk(2),
    )
    chosen_tokens, rejected_tokens = answers.tokens[:, None].chunk(2)
    valid = torch.ones_like(chosen, dtype=torch.bool)
    return (
        GroupLogps(chosen, ref_chosen, valid, rejected, ref_rejected, valid),
        Answers(chosen, ref_chosen, valid, chosen_tokens),
        rejected_tokens,
    )


def assert_equal(found, expected, answers):
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (ours,) = torch.autograd.grad(found, answers.token_logps, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, answers.token_logps, retain_graph=True)
    assert theirs.abs().max() > 1e-3
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_dpo_and_d2o_with_one_anchor_are_trls_sigmoid(dpo_trainer, seed):
    answers = completions(seed, 8)
    expected = trl_dpo(dpo_trainer, "sigmoid", answers)
    group, chosen, _ = group_of(answers)
    assert_equal(baselines.dpo_loss(group, chosen, beta=BETA).loss.mean(), expected, answers)
    assert_equal(baselines.dpo_self_loss(group, beta=BETA).loss.mean(), expected, answers)
    assert_equal(d2o_loss(group, alpha=BETA, beta=BETA).loss.mean(), expected, answers)
    assert_equal(BETA / 2 * baselines.altpo_loss(group, beta=BETA).loss.mean(), expected, answers)


@pytest.mark.parametrize("seed", range(3))
def test_ipo_is_trls_on_its_own_normalisation(dpo_trainer, seed):
    """TRL divides each log-ratio by the answer's tokens before the square; ours is the paper's, on sums."""
    answers = completions(seed, 8)
    expected = trl_dpo(dpo_trainer, "ipo", answers)
    group, chosen, _ = group_of(
        answers, logps=answers.sums / answers.tokens, ref_logps=answers.ref_logps / answers.tokens
    )
    assert_equal(baselines.ipo_loss(group, chosen, tau=BETA).loss.mean(), expected, answers)
    group, chosen, _ = group_of(answers)
    assert baselines.ipo_loss(group, chosen, tau=BETA).loss.mean().item() != pytest.approx(expected.item(), rel=0.01)


def test_ipo_of_one_token_answers_is_trls(dpo_trainer):
    answers = completions(0, 8, longest=1)
    group, chosen, _ = group_of(answers)
    assert_equal(baselines.ipo_loss(group, chosen, tau=BETA).loss.mean(), trl_dpo(dpo_trainer, "ipo", answers), answers)


def test_slic_without_sft_is_trls_hinge(dpo_trainer):
    """TRL: max(0, 1 − β (r(y_w) − r(y_l))), on log-ratios. SLiC's is on log-probs, with δ = 1/β, and β times less."""
    answers = completions(1, 12)
    expected = trl_dpo(dpo_trainer, "hinge", answers)
    ratios = answers.sums - answers.ref_logps
    group, chosen, _ = group_of(answers, logps=ratios)
    terms = baselines.slic_loss(group, chosen, delta=1 / BETA, lambda_sft=0.0)
    assert 0 < (terms.loss == 0).sum() < len(terms.loss)  # on both sides of the hinge
    assert_equal(BETA * terms.loss.mean(), expected, answers)


def test_simpo_of_log_ratios_without_a_margin_is_trls_length_normalised_dpo(dpo_trainer):
    answers = completions(2, 8)
    group, chosen, tokens = group_of(answers, logps=answers.sums - answers.ref_logps)
    found = baselines.simpo_loss(group, chosen, tokens, beta=BETA, gamma=0.0)
    assert_equal(found.loss.mean(), trl_dpo(dpo_trainer, "sigmoid_norm", answers), answers)


def test_sft_is_trls_once_its_mean_over_tokens_is_undone(dpo_trainer):
    """TRL means over all tokens of the batch; ours is a sum a pair."""
    answers = completions(3, 8)
    group, chosen, _ = group_of(answers)
    found = baselines.sft_chosen_loss(group, chosen).loss.sum() / chosen.tokens.sum()
    assert_equal(found, trl_dpo(dpo_trainer, "sft", answers), answers)


def test_bco_and_ulma_without_an_offset_are_the_rejected_half_of_trls_bco_pair(dpo_trainer):
    """TRL 1.16.0 has no BCO trainer; its `bco_pair` is −log σ(β r(y_w)) − log σ(−β r(y_l)), with δ = 0."""
    answers = completions(4, 8)
    group, chosen, _ = group_of(answers)
    chosen_half = torch.log1p(torch.exp(-BETA * (chosen.logps - chosen.ref_logps)))
    expected = trl_dpo(dpo_trainer, "bco_pair", answers) - chosen_half.mean()
    assert_equal(baselines.bco_negative_loss(group, beta=BETA, delta=0.0).loss.mean(), expected, answers)
    assert_equal(baselines.ulma_negative_loss(group, beta=BETA, c=0.0).loss.mean(), expected, answers)
    assert_equal(BETA / 2 * baselines.npo_loss(group, beta=BETA).loss.mean(), expected, answers)


def trl_kto(trainer, loss_type, answers, mismatched):
    """TRL's loss of a batch of undesirable answers, and z₀, which it takes from answers under other prompts."""
    trainer.loss_type = loss_type
    trainer.calculate_KL = loss_type == "kto"
    # The first token tells the stand-in for the model which log-probs are asked for.
    batch = {
        "input_ids": torch.zeros_like(answers.mask),
        "attention_mask": torch.ones_like(answers.mask),
        "completion_mask": answers.mask,
        "KL_input_ids": torch.ones_like(mismatched.mask),
        "KL_attention_mask": torch.ones_like(mismatched.mask),
        "KL_completion_mask": mismatched.mask,
        "label": torch.zeros(len(answers.mask), dtype=torch.bool),
        "ref_logps": answers.ref_logps,
        "ref_KL_logps": mismatched.ref_logps,
    }
    outputs = (answers.output, mismatched.output)
    return trainer._compute_loss(lambda **inputs: outputs[int(inputs["input_ids"][0, 0])](), batch, False)


@pytest.mark.parametrize("shift", [0.0, -8.0], ids=["z0 above 0", "z0 clamped at 0"])
@pytest.mark.parametrize("seed", range(2))
def test_kto_is_trls_undesirable_side(kto_trainer, seed, shift):
    answers, mismatched = completions(seed, 6), completions(seed + 10, 6)
    mean = (mismatched.sums - mismatched.ref_logps).mean().detach()
    mismatched = Completions(mismatched.token_logps, mismatched.mask, mismatched.ref_logps + mean - 1.0 - shift)
    expected = trl_kto(kto_trainer, "kto", answers, mismatched)
    z0 = max(0.0, (mismatched.sums - mismatched.ref_logps).mean().item())
    assert z0 == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-9)
    group = only_negatives(answers)
    found = baselines.kto_negative_loss(group, beta=BETA, lambda_u=1.4, z0=z0).loss.mean()
    assert_equal(found, expected, answers)
    # z₀ is a constant on both sides.
    for loss in (found, expected):
        slope = torch.autograd.grad(loss, mismatched.token_logps, retain_graph=True, allow_unused=True)
        assert slope == (None,)


def test_kto_without_z0_is_trls_unpaired_apo(kto_trainer):
    answers = completions(5, 6)
    expected = trl_kto(kto_trainer, "apo_zero_unpaired", answers, answers)
    found = baselines.kto_negative_loss(only_negatives(answers), beta=BETA, lambda_u=1.4, z0=0.0)
    assert_equal(found.loss.mean(), expected, answers)


def only_negatives(answers):
    logps, ref_logps = answers.sums[:, None], answers.ref_logps[:, None]
    valid = torch.ones_like(logps, dtype=torch.bool)
    return GroupLogps(logps, ref_logps, ~valid, logps, ref_logps, valid)


@pytest.fixture
def cpo():
    """TRL's CPO losses, which read nothing of their trainer but these settings."""
    from trl.experimental.cpo import CPOTrainer

    settings = {"beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": 0.0, "alpha": 0.0}

    def loss(loss_type, chosen, rejected):
        trainer: Any = SimpleNamespace(**settings, loss_type=loss_type, accelerator=SimpleNamespace(device="cpu"))
        return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()

    return SimpleNamespace(loss=loss, logps=CPOTrainer.get_batch_logps, **settings)


@pytest.mark.parametrize("seed", range(3))
def test_simpo_is_trls_from_logits_on(cpo, seed):
    """TRL's own mean per token against our sums and token counts."""
    logits, labels = logits_and_labels(seed)
    chosen, rejected = cpo.logps(logits, labels, average_log_prob=True).chunk(2)
    group, answers, tokens = groups_of_logits(cpo, logits, labels)
    found = baselines.simpo_loss(group, answers, tokens, beta=cpo.beta, gamma=cpo.simpo_gamma).loss.mean()
    assert_equal_by(logits, found, cpo.loss("simpo", chosen, rejected))


def test_dpo_without_a_reference_and_slic_without_sft_are_trls_cpo_losses(cpo):
    logits, labels = logits_and_labels(3)
    chosen, rejected = cpo.logps(logits, labels, average_log_prob=False).chunk(2)
    group, answers, _ = groups_of_logits(cpo, logits, labels)
    dpo = baselines.dpo_loss(group, answers, beta=cpo.beta).loss.mean()
    assert_equal_by(logits, dpo, cpo.loss("sigmoid", chosen, rejected))
    slic = baselines.slic_loss(group, answers, delta=1 / cpo.beta, lambda_sft=0.0).loss.mean()
    assert_equal_by(logits, cpo.beta * slic, cpo.loss("hinge", chosen, rejected))


def logits_and_labels(seed, count=8, width=9, vocabulary=7):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, width, vocabulary, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(vocabulary, (count, width), generator=generator)
    labels[:, :2] = -100
    for row, end in enumerate(torch.randint(3, width, (count,), generator=generator).tolist()):
        labels[row, end:] = -100
    return logits, labels


def groups_of_logits(cpo, logits, labels):
    sums = cpo.logps(logits, labels, average_log_prob=False)[:, None]
    (chosen, rejected), (chosen_tokens, tokens) = sums.chunk(2), (labels != -100).sum(1)[:, None].double().chunk(2)
    valid, zero = torch.ones_like(chosen, dtype=torch.bool), torch.zeros_like(chosen)
    return (
        GroupLogps(chosen, zero, valid, rejected, zero, valid),
        Answers(chosen, zero, valid, chosen_tokens),
        tokens,
    )


def assert_equal_by(leaf, found, expected):
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (ours,) = torch.autograd.grad(found, leaf, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, leaf, retain_graph=True)
    assert theirs.abs().max() > 1e-4
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)
