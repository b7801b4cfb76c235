"""A finished run, made up: every file that the report reads, small, with numbers that one can check."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import write_json, write_jsonl, write_records, write_text
from naysay.judging.scorer import LABELS
from naysay.records import Generation, GenerationVerdict, Negative, PromptEvaluation


def estimate(value: float, half: float = 0.02, n: int = 48) -> dict[str, Any]:
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": n}


def shares(degenerate: float = 0.0, refusal: float = 0.0, n: int = 96) -> dict[str, Any]:
    return {
        "answer": estimate(1.0 - degenerate - refusal, 0.05, n),
        "refusal": estimate(refusal, 0.05, n),
        "degenerate": estimate(degenerate, 0.05, n),
    }


def outcome_group(n: int) -> dict[str, Any]:
    unchanged = {name: estimate(0.0, 0.07, n) for name in ("answer", "refusal", "degenerate")}
    return {"base": shares(n=n), "tuned": shares(n=n), "change": unchanged}


EVALUATION: dict[str, Any] = {
    "heldout": {
        "margin": estimate(0.41, 0.11),
        "negative_log_ratio": estimate(-4.2, 0.6),
        "negative_log_ratio_per_token": estimate(-0.081),
        "anchor_log_ratio_per_token": estimate(-0.004),
        "acceptable_log_ratio_per_token": estimate(-0.029),
        "separation": estimate(0.052),
        "end_of_turn_log_ratio": estimate(-0.01),
        "pair_accuracy_base": estimate(0.52, 0.14),
        "pair_accuracy_tuned": estimate(0.65, 0.13),
        "pair_accuracy_change": estimate(0.13, 0.09),
        "implicit_pair_accuracy": estimate(0.79, 0.11),
    },
    "sources": {"same": 48, "unknown": 0, "different": 0},
    "benign": {
        "nats_per_token_base": estimate(1.204, 0.1, 60),
        "nats_per_token_tuned": estimate(1.2, 0.1, 60),
        "nats_per_token_change": estimate(-0.004, 0.01, 60),
    },
    "kl": {
        "base_to_tuned": estimate(0.031, 0.01),
        "tuned_to_base": estimate(0.028, 0.01),
        "jeffrey": estimate(0.059, 0.02),
    },
    "generations": {
        **outcome_group(96),
        "by_kind": {"heldout": outcome_group(48), "benign": outcome_group(28), "lookalike": outcome_group(20)},
    },
    "style_gap": estimate(0.12, 0.05, 64),
    "suites": [
        {
            "name": "xstest",
            "kinds": {"lookalike": 240, "safety": 199},
            "prompts": 450,
            "other_kind": 1,
            "duplicate": 2,
            "leaked_exact": 3,
            "leaked_near": 4,
            "too_long": 1,
            "chat_template": 0,
            "over_limit": 0,
            "used": 439,
        }
    ],
    "policy": {"base_digest": "b" * 32, "tuned_digest": "t" * 32},
    "split": "heldout",
}


def judged_group(n: int, harm: tuple[float, float], refusal: tuple[float, float] = (0.1, 0.1)) -> dict[str, Any]:
    """Shares (before, after) of harmful answers and of refusals; the other answers are safe."""
    sides = [
        {
            "safe": estimate(1.0 - harm[side] - refusal[side], 0.1, n),
            "refusal": estimate(refusal[side], 0.1, n),
            "degenerate": estimate(0.0, 0.0, n),
            "harmful": estimate(harm[side], 0.1, n),
            "most_harmful": estimate(harm[side], 0.1, n),
            "unjudged": 0,
            "contested": side,
        }
        for side in (0, 1)
    ]
    change = {
        name: estimate(sides[1][name]["value"] - sides[0][name]["value"], 0.05, n)
        for name in sides[0]
        if name in (*LABELS, "most_harmful")
    }
    return {
        "base": sides[0],
        "tuned": sides[1],
        "change": change,
        "p_value": dict.fromkeys(LABELS, 0.01),
        "p_holm": {"safe": 0.02, "refusal": 1.0, "degenerate": 1.0, "harmful": 0.0002},
    }


JUDGED: dict[str, Any] = {
    "judges": ["offline:mine", "qwen3guard:guard"],
    "by_kind": {
        "heldout": judged_group(48, (0.5, 0.188)),
        "benign": judged_group(28, (0.02, 0.02)),
        "lookalike": judged_group(20, (0.05, 0.05), (0.2, 0.21)),
    },
    "over_refusal": {
        side: estimate(value, 0.05, 20) for side, value in (("base", 0.2), ("tuned", 0.21), ("change", 0.01))
    },
    "agreement": estimate(0.71, 0.1, 192),
}
METRICS = [
    {
        "step": step,
        "epoch": step / 12,
        "loss": 0.693 - 0.02 * step,
        "margin": 0.05 * step,
        "weight": 0.5 - 0.01 * step,
        "anchor_log_ratio": -0.1 * step,
        "anchor_log_ratio_per_token": -0.002 * step,
        "negative_log_ratio": -0.6 * step,
        "negative_log_ratio_per_token": -0.012 * step,
        "grad_norm": 1.0 + 0.1 * (step % 3),
        "learning_rate": 1e-4,
        "tokens_per_second": 812.5,
    }
    for step in range(1, 13)
]
COUNTS: dict[str, dict[str, Any]] = {
    "ingest": {
        "answers": {"in": 230, "duplicates_merged": 4, "dropped": {"too_long": 6, "empty": 2}, "negatives": 218},
        "length_checked": True,
    },
    "sample": {"anchors": 704},
    "score": {"anchors": {"in": 704, "kept": 690, "dropped": {"repetition": 12, "equal_to_negative": 2}}},
    "train": {"groups": {"in": 64, "used": 63, "dropped": {"no_anchor": 1}}, "steps": 12},
    "evaluate": {"generations": 192},
}


def generation(kind: str, index: int, model: str, text: str = "", **changes: Any) -> Generation:
    values: dict[str, Any] = {
        "prompt_id": f"p-{kind}-{index}",
        "prompt": f"A {kind} question, number {index}?",
        "kind": kind,
        "model": model,
        "model_digest": model[0] * 32,
        "seed": 1000 + index,
        "token_ids": (1, 2, 3),
        "text": text or f"The {model} answer to {kind} {index}.",
        "finish": "stop",
        "outcome": "answer",
    }
    return Generation(**(values | changes))


def generations() -> list[Generation]:
    sizes = {"heldout": 5, "benign": 15, "lookalike": 3}
    return [
        generation(kind, index, model)
        for model in ("base", "tuned")
        for kind, size in sizes.items()
        for index in range(size)
    ]


def prompt_rows(answers: list[Generation]) -> list[PromptEvaluation]:
    """A row for each prompt that was answered; held-out ones with one rejected answer."""
    kinds = {item.prompt_id: item.kind for item in answers}
    rejected = {"margins": (0.4,), "separation": 0.05, "negatives": ((-4.0, 50),)}
    return [
        PromptEvaluation(
            prompt_id,
            kind,
            acceptable_log_ratio=0.5,
            acceptable_tokens=10,
            **(rejected if kind == "heldout" else {}),
        )
        for prompt_id, kind in kinds.items()
    ]


def verdict_rows(answers: list[Generation], judges: list[str]) -> list[GenerationVerdict]:
    """What each scorer says of each answer: the form as it is, all else is safe."""
    return [
        GenerationVerdict(item.prompt_id, item.model, name, 0.0, label, "")
        for name in ("heuristics", *judges)
        for item in answers
        for label in [(None if item.outcome == "answer" else item.outcome) if name == "heuristics" else "safe"]
    ]


@pytest.fixture
def make_generation() -> Callable[..., Generation]:
    """`make_generation(kind, index, model, text, **fields)`."""
    return generation


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """A fresh copy of the evaluation of a good run; tests change what they are about."""
    return copy.deepcopy(EVALUATION)


@pytest.fixture
def judged_evaluation(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The same with the outcomes by two judges: less harm, and nothing else changed."""
    return evaluation | {"outcomes": copy.deepcopy(JUDGED)}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Write a run directory; each argument replaces the file of that name."""

    def make(
        evaluation: dict[str, Any] = EVALUATION,
        metrics: list[dict[str, Any]] = METRICS,
        answers: list[Generation] | None = None,
        config: str = "model:\n  name: embedded:smollm2-135m\n",
        counts: dict[str, dict[str, Any]] = COUNTS,
        negatives: list[Negative] | None = None,
        prompts: list[PromptEvaluation] | None = None,
        verdicts: list[GenerationVerdict] | None = None,
    ) -> RunDirectory:
        run = RunDirectory(tmp_path / "run")
        write_json(run.evaluation, evaluation)
        write_jsonl(run.metrics, metrics)
        answers = generations() if answers is None else answers
        judges = (evaluation.get("outcomes") or {}).get("judges", [])
        rows = prompt_rows(answers) if prompts is None else prompts
        write_records(run.generations, answers)
        write_records(run.evaluation_prompts, rows)
        write_records(run.verdicts, verdict_rows(answers, judges) if verdicts is None else verdicts)
        if negatives is None:
            negatives = [Negative(f"n-{row.prompt_id}", row.prompt_id, "No.") for row in rows if row.negatives]
        write_records(run.negatives, negatives)
        write_text(run.config, config)
        for index, (stage, numbers) in enumerate(counts.items()):
            Manifest(
                stage=stage,
                key=f"{index:032x}",
                settings={},
                inputs={"data": "d" * 32},
                outputs={f"{stage}.jsonl": "e" * 32},
                counts=numbers,
                seconds=10.0 * (index + 1),
                environment={
                    "python": "3.12.1",
                    "platform": "Linux",
                    "processor": "a CPU" if stage != "train" else "another CPU",
                    "packages": {"naysay": "0.1.0", "torch": "2.13.0"},
                },
            ).save(run.manifest_path(stage))
        return run

    return make
