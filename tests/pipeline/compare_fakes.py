"""Stages for a comparison that take no time.

`train` and `evaluate` leave files that a comparison can read, with figures that are a function of objective, learning
rate, seed and prompt.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_json, write_jsonl, write_records, write_text
from naysay.config.run import RunConfig
from naysay.records import Prompt, PromptEvaluation
from pipeline.fake_stages import FakeStage, fake_stages

HELDOUT, BENIGN, TRAINED = 10, 4, 8


def label(config: RunConfig) -> str:
    """What a call was about, e.g. `npo 0.0001 seed 0 dev`."""
    training = config.training
    return f"{training.objective} {training.learning_rate:g} seed {training.seed} {config.evaluation.split}"


@dataclass
class Effects:
    """Separation, KL and rise of the degenerate share by objective, per 1e-4 of learning rate."""

    separation: dict[str, float] = field(default_factory=lambda: {"d2o": 0.04, "npo": 0.03, "ga": 0.01})
    kl: dict[str, float] = field(default_factory=lambda: {"d2o": 0.005, "npo": 0.0075, "ga": 0.015})
    degenerate: dict[str, float] = field(default_factory=dict)
    acceptable: bool = True


@dataclass
class CompareStage:
    """`train` or `evaluate`. `stop` maps a label to an exception that is raised once: after the stage's own files are
    written, so that what lies there is partial work. `calls` are the labels it was run for."""

    name: str
    effects: Effects
    VERSION: int = 1
    calls: list[str] = field(default_factory=list)
    configs: list[RunConfig] = field(default_factory=list)
    stop: dict[str, BaseException] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    """What was not taken from another run: references by `train`, answers of the base by `evaluate`."""

    def settings(self, config: RunConfig) -> dict[str, Any]:
        if self.name == "train":
            return {"seed": config.seed, "training": config.training.model_dump(mode="json")}
        return config.evaluation.model_dump(mode="json")

    def inputs(self, config: RunConfig, run: RunDirectory) -> dict[str, Path]:
        if self.name == "train":
            return {"anchors": run.anchors, "selection": run.selection}
        return {"adapter": run.adapter}

    def outputs(self, config: RunConfig, run: RunDirectory) -> list[Path]:
        if self.name == "train":
            return [run.adapter, run.metrics, run.train / "groups.jsonl"]
        return [run.evaluation, run.evaluation_prompts, run.generations]

    def run(self, config: RunConfig, run: RunDirectory, **injected: Any) -> dict[str, Any]:
        self.calls.append(label(config))
        self.configs.append(config)
        counts = self._train(config, run) if self.name == "train" else self._evaluate(config, run)
        error = self.stop.pop(label(config), None)
        if error is not None:
            raise error
        return counts

    def _once(self, path: Path, what: str) -> None:
        if not path.exists():
            self.computed.append(what)
            write_text(path, what)

    def _train(self, config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        self._once(run.reference_cache / "base" / "batch.safetensors", "references")
        steps = config.training.max_steps or 0
        write_text(run.train / f"checkpoint-{steps}" / "optimizer.pt", "large")
        write_json(run.adapter / "weights.json", label(config))
        rate = config.training.learning_rate / 1e-4
        write_jsonl(run.metrics, [_metric_row(step, rate) for step in range(1, steps + 1)])
        rows = [{"prompt_tokens": 10, "anchor_tokens": 30, "negative_tokens": 20 + 2 * i} for i in range(TRAINED)]
        write_jsonl(run.train / "groups.jsonl", rows)
        return {"groups": {"in": TRAINED, "trained": TRAINED}, "steps": steps}

    def _evaluate(self, config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        tuned = read_json(run.adapter / "weights.json")
        self._once(run.reference_cache / "base" / f"{config.evaluation.split}.safetensors", "scores")
        self._once(run.reference_cache / tuned.replace(" ", "-") / "batch.safetensors", "tuned scores")
        self._once(run.generation_parts / f"base-{config.evaluation.split}" / "part-0.jsonl", "base answers")
        self._once(run.generation_parts / "tuned-0" / "part-0.jsonl", "tuned answers")
        rows = list(self._rows(config))
        write_records(run.evaluation_prompts, rows)
        write_json(run.evaluation, _evaluation(rows, config, tuned.replace(" ", "-")))
        write_text(run.generations, "")
        return {"prompts": len(rows)}

    def _rows(self, config: RunConfig) -> Any:
        training, effects = config.training, self.effects
        rate, name, seed = training.learning_rate / 1e-4, training.objective, training.seed or 0
        gain = rate * effects.separation[name] * (1 + 0.02 * seed)
        kl, broken = rate * effects.kl[name], rate * effects.degenerate.get(name, 0.0)
        total = HELDOUT + BENIGN
        for i in range(HELDOUT):
            own = 0.001 * (i - HELDOUT / 2)  # the same for every objective: it cancels in a difference
            yield PromptEvaluation(
                f"p-{i}",
                "heldout",
                margins=(10 * gain + own,),
                separation=gain + own + 0.0001 * (i % 3) * len(name) if effects.acceptable else None,
                negative_log_ratio=-10 * gain,
                negative_tokens=10,
                acceptable_log_ratio=1.0 if effects.acceptable else 0.0,
                acceptable_tokens=20 if effects.acceptable else 0,
                outcome_base="answer",
                outcome_tuned="degenerate" if i < broken * total else "answer",
            )
        for i in range(BENIGN):
            yield PromptEvaluation(
                f"b-{i}",
                "benign",
                acceptable_log_ratio=-rate * (i + 1) * 0.01,
                acceptable_tokens=10,
                kl_base_to_tuned=(kl * 10, 10),
                kl_tuned_to_base=(kl * 12, 12),
                outcome_base="answer",
                outcome_tuned="answer",
            )


def _metric_row(step: int, rate: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 0.7 - 0.01 * step,
        "margin": 0.1 * step * rate,
        "anchor_log_ratio": -0.1 * step,
        "negative_log_ratio": -step * rate,
        "anchor_log_ratio_per_token": -0.001 * step,
        "negative_log_ratio_per_token": -0.02 * step * rate,
        "grad_norm": 1.0 + step,
    }


def _evaluation(rows: list[PromptEvaluation], config: RunConfig, tuned: str) -> dict[str, Any]:
    def estimate(values: list[float]) -> dict[str, Any]:
        mean = sum(values) / len(values) if values else None
        return {"value": mean, "ci_low": mean, "ci_high": mean, "n": len(values)}

    degenerate = [float(row.outcome_tuned == "degenerate") for row in rows]
    kl = [row.kl_base_to_tuned for row in rows if row.kl_base_to_tuned is not None]
    return {
        "split": config.evaluation.split,
        "policy": {"base_digest": "base", "tuned_digest": tuned},
        "heldout": {
            "separation": estimate([row.separation for row in rows if row.separation is not None]),
            "margin": estimate([margin for row in rows for margin in row.margins]),
        },
        "kl": {name: estimate([s / n for s, n in kl]) for name in ("base_to_tuned", "tuned_to_base")},
        "generations": {"change": {"degenerate": estimate(degenerate)}},
    }


def compare_stages(effects: Effects | None = None) -> dict[str, Any]:
    """The whole graph. `ingest` counts the prompts of each split, as the real one does."""
    shared = effects or Effects()
    stages: dict[str, Any] = dict(fake_stages())
    stages["ingest"] = CountingIngest(
        **{f: getattr(stages["ingest"], f) for f in ("name", "section", "reads", "writes")}
    )
    stages["train"], stages["evaluate"] = CompareStage("train", shared), CompareStage("evaluate", shared)
    return stages


@dataclass
class CountingIngest(FakeStage):
    """As the fake `ingest`; it leaves no dev prompts where the config wants none."""

    def run(self, config: RunConfig, run: RunDirectory, **injected: Any) -> dict[str, Any]:
        super().run(config, run, **injected)
        write_records(run.prompts, [Prompt(f"t-{i}", (), "", "train") for i in range(TRAINED)])
        write_text(run.acceptable, "")
        dev = 0 if config.data.dev_fraction == 0.0 else 5
        benign = 0 if config.data.limit.benign == 0 else BENIGN
        return {"prompts": {"train": TRAINED, "dev": dev, "heldout": HELDOUT, "benign": benign}}
