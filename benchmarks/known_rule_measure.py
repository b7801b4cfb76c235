"""What an adapter does to the held-out prompts of a known rule."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.known_rule_cell import BUDGET, HEAD_CHUNK, PAIR_DRAWS, Answers, Cell
from benchmarks.known_rule_data import (
    EVALUATION_ROUND,
    OwnAnswer,
    draw_own,
    heldout_pairs,
    prompt_ids,
)
from benchmarks.rule_prompts import prompts_of_split
from benchmarks.rules import RULES
from transformers import TrainerCallback

from naysay.artifacts.store import read_json, write_json
from naysay.core.prefix import TokenGroup, group_length, plan_microbatches
from naysay.evaluation.likelihood import HeldoutGroup, Scores, heldout_metrics
from naysay.generation.hf import HFSampler
from naysay.judging.heuristics import classify
from naysay.modeling.adapters import BaseAndTuned
from naysay.modeling.chat import encode_response
from naysay.modeling.divergence import OpenPolicy, kl_divergence
from naysay.modeling.forward import response_logps
from naysay.modeling.modes import eval_mode
from naysay.statistics.intervals import wilson
from naysay.statistics.paired import bootstrap_mean, bootstrap_ratio_mean, paired_proportion_change


class Measure(TrainerCallback):
    """What an adapter does to held-out answers: the rule, the other rules, KL both ways, length, degeneration."""

    def __init__(self, cell: Cell, work: Path, answers: Answers):
        self.cell, self.work, self.tokenizer, self.seconds = cell, work, answers.tokenizer, 0.0
        self.prompts = prompts_of_split(cell.rule, cell.split)[: cell.prompts]
        length = cell.data.max_new_tokens
        self.base = [mine[0] for mine in answers.evaluation(self.prompts, 1, length, cell.seed)]
        self.pairs: list[tuple[str, Any, Any]] = []
        self._pair_base: list[list[float]] | None = None
        if cell.pair_prompts:
            several = answers.evaluation(self.prompts[: cell.pair_prompts], PAIR_DRAWS, length, cell.seed)
            self.pairs = heldout_pairs(cell.rule, several, cell.data.negatives)

    def points(self) -> list[dict[str, Any]]:
        """What was measured, by step."""
        return sorted((read_json(path) for path in self.work.glob("point-*.json")), key=lambda point: point["step"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the step's own log, so that its rate does not count the measuring, and before its checkpoint."""
        step = state.global_step
        if step % self.cell.eval_every == 0 or step == state.max_steps:
            self.at(step, kwargs["model"])

    def at(self, step: int, model: Any) -> None:
        """Measure and save the point, unless it was measured before the run was interrupted."""
        path = self.work / f"point-{step}.json"
        if path.exists():
            return
        started = time.perf_counter()
        with eval_mode(model):
            policies = BaseAndTuned(None, model)
            tuned = self.base if step == 0 else self._answers(step, model)
            point = {"step": step, **rates(self.cell.rule, self.base, tuned)}
            if step > 0:
                point |= self._divergences(policies, tuned) | self._separation(policies)
        point["seconds"] = round(time.perf_counter() - started, 1)
        self.seconds += point["seconds"]
        write_json(path, point)
        kl = "" if step == 0 else f", KL {point['kl_base_tuned']['value']:.3f} {point['kl_tuned_base']['value']:.3f}"
        print(f"  step {step}: violation {point['violation']['value']:.3f}{kl} ({point['seconds']} s)", flush=True)

    def _answers(self, step: int, model: Any) -> list[OwnAnswer]:
        drawn = draw_own(
            HFSampler(model, self.tokenizer, f"step {step}"),
            self.tokenizer,
            self.prompts,
            1,
            max_new_tokens=self.cell.data.max_new_tokens,
            seed=self.cell.seed,
            round=EVALUATION_ROUND,
            folder=self.work / f"answers-{step}",
            description=f"answers after step {step}",
        )
        return [mine[0] for mine in drawn]

    def _divergences(self, policies: BaseAndTuned, tuned: Sequence[OwnAnswer]) -> dict[str, Any]:
        count = self.cell.kl_prompts
        forward = self._kl(policies.base, policies.tuned, self.base[:count])
        backward = self._kl(policies.tuned, policies.base, tuned[:count])
        good = [not RULES[self.cell.rule].violates(answer.text) for answer in self.base[:count]]
        return {
            "kl_base_tuned": _mean_kl(forward),
            "kl_tuned_base": _mean_kl(backward),
            "kl_base_tuned_acceptable": _mean_kl([value for value, keep in zip(forward, good, strict=True) if keep]),
        }

    def _kl(self, p: OpenPolicy, q: OpenPolicy, answers: Sequence[OwnAnswer]) -> list[tuple[float, int]]:
        groups: list[TokenGroup] = [
            (prompt_ids(self.tokenizer, prompt), [answer.token_ids])
            for prompt, answer in zip(self.prompts, answers, strict=False)
        ]
        return kl_divergence(
            p, q, groups, tokens_per_microbatch=BUDGET, head_chunk=HEAD_CHUNK, description="KL divergence"
        )

    def _separation(self, policies: BaseAndTuned) -> dict[str, Any]:
        """Log-prob changes of acceptable and of violating answers in the style of the negatives."""
        if not self.pairs:
            return {}
        ids = {prompt.prompt_id: prompt_ids(self.tokenizer, prompt) for prompt in self.prompts}
        groups: list[TokenGroup] = [
            (ids[prompt], [self._ids(good), self._ids(bad)]) for prompt, good, bad in self.pairs
        ]
        if self._pair_base is None:
            self._pair_base = _logps(policies.base, groups)
        scored = zip(self.pairs, groups, self._pair_base, _logps(policies.tuned, groups), strict=True)
        heldout = [
            HeldoutGroup(
                prompt_id=prompt,
                anchors=[],
                negatives=[Scores(before[1], after[1], len(answers[1]))],
                acceptable=[Scores(before[0], after[0], len(answers[0]))],
                ref_anchors=[],
                ref_negatives=[before[1]],
            )
            for (prompt, _, _), (_, answers), before, after in scored
        ]
        found = heldout_metrics(heldout, alpha=0.1, beta=0.1, samples=2000, seed=0)
        names = ("negative_log_ratio_per_token", "acceptable_log_ratio_per_token", "separation")
        return {"pairs": {name: found[name].as_dict() for name in (*names, "implicit_pair_accuracy")}}

    def _ids(self, answer: Any) -> list[int]:
        if isinstance(answer, dict):
            return encode_response(self.tokenizer, answer["text"], ended=answer["finish"] == "stop")
        return answer


def rates(rule: str, base: Sequence[OwnAnswer], tuned: Sequence[OwnAnswer]) -> dict[str, Any]:
    """Shares of answers that break each rule, before and after on the same prompts with the same seeds; length; end;
    degeneration. `violation` and `change` are of the rule that was trained, the rest stands under `others`."""

    def one(name: str) -> dict[str, Any]:
        before, after = ([RULES[name].violates(answer.text) for answer in kind] for kind in (base, tuned))
        return {
            "rate": wilson(sum(after), len(after)).as_dict(),
            "change": paired_proportion_change(before, after).as_dict(),
        }

    lengths = [np.array([len(answer.token_ids) for answer in kind], dtype=float) for kind in (base, tuned)]
    mine = one(rule)
    degenerate = [classify(answer.text, answer.finish).label == "degenerate" for answer in tuned]
    return {
        "violation": mine["rate"],
        "change": mine["change"],
        "others": {name: one(name) for name in RULES if name != rule},
        "tokens": float(lengths[1].mean()),
        "tokens_change": bootstrap_mean(lengths[1] - lengths[0]).as_dict(),
        "stopped": sum(answer.finish == "stop" for answer in tuned) / len(tuned),
        "degenerate": wilson(sum(degenerate), len(degenerate)).as_dict(),
    }


def _mean_kl(values: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Nats per token over prompts, with a bootstrap interval."""
    return bootstrap_ratio_mean([nats for nats, _ in values], [tokens for _, tokens in values]).as_dict()


@torch.inference_mode()
def _logps(open_policy: OpenPolicy, groups: Sequence[TokenGroup]) -> list[list[float]]:
    """Log-probs (sums, nats) of the answers of each group."""
    result: list[list[float]] = [[] for _ in groups]
    with open_policy() as model:
        for batch in plan_microbatches([group_length(group) for group in groups], BUDGET):
            members = [groups[i] for i in batch]
            values = iter(response_logps(model, members, head_chunk=HEAD_CHUNK).double().tolist())
            for i, (_, answers) in zip(batch, members, strict=True):
                result[i] = [next(values) for _ in answers]
    return result
