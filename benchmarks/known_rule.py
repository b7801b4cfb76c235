"""Does an objective remove what was rejected, and nothing else? The known-rule benchmark.

Prompts, the model's own answers, and an exact rule that decides which of them are rejected: no judge, no label noise
unless injected, and on-policy. For each rule and objective an adapter is trained and measured on held-out prompts every
few steps: the rate of the rule, of the other rules, KL to the initial policy both ways, length, degeneration.

    python -m benchmarks.known_rule --rules lists,exclamation --objectives d2o,npo,altpo --out runs/known-rule
    python -m benchmarks.known_rule --rules lists --objectives d2o,d2o:beta=0.3 --split dev --out runs/tuning
    python -m benchmarks.known_rule --rules lists --export rejected.jsonl --out runs/known-rule

A finished cell (rule, objective, learning rate, seed) is not computed again, and a killed one goes on from its last
checkpoint: run the same command again. Processes may share --out where their rules differ; the command that names all
rules then collects what they left.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.known_rule_cell import Answers, Cell, ObjectiveSpec, run_cell, saved
from benchmarks.known_rule_data import AnchorSource, DataSettings, NegativeSource, OwnAnswer, export_rows
from benchmarks.known_rule_report import KL_BOUND, draw_figure, fronts, summarise, table
from benchmarks.known_rule_train import train_cell
from benchmarks.rule_prompts import SPLITS, Split, prompts_of_split
from benchmarks.rules import RULES

from naysay.artifacts.manifest import environment
from naysay.artifacts.store import write_json
from naysay.config.model import ModelConfig
from naysay.errors import ConfigError, NaysayError
from naysay.modeling.loading import load_model, load_tokenizer
from naysay.training.objectives import make_objective

RESULT = "known_rule.json"
QUICK = {"steps": {"": 2}, "eval_every": 2, "groups_per_step": 2, "heldout": 16, "kl_prompts": 8, "train_prompts": 8}
PAIR_PROMPTS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table, and write the result and the figures below --out."""
    try:
        given = _parse(arguments)
        out = Path(given.out)
        if given.export:
            _export(given, out)
            return 0
        cells = _run(_cells(given), out)
        _write(cells, out)
    except NaysayError as error:
        print(f"known_rule: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(cells: Sequence[Cell], out: Path) -> list[dict[str, Any]]:
    """All cells, computed or read. The model is loaded when the first cell has to be computed."""
    answers: Answers | None = None

    def compute(cell: Cell, work: Path) -> dict[str, Any]:
        nonlocal answers
        answers = answers or _answers(out)
        return train_cell(cell, work, answers)

    results = []
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell.key}{'' if saved(cell, out) is None else ' (saved)'}", flush=True)
        results.append(run_cell(cell, out, compute)[0])
    return results


def _answers(out: Path) -> Answers:
    config = ModelConfig()
    return Answers(load_model(config), load_tokenizer(config), out)


def _write(cells: Sequence[dict[str, Any]], out: Path) -> None:
    import torch

    summary = summarise(cells)
    result = {
        "benchmark": "known_rule",
        "command": f"python -m benchmarks.known_rule {shlex.join(sys.argv[1:])}",
        "kl_bound": KL_BOUND,
        "rules": {name: rule.description for name, rule in RULES.items()},
        "environment": {**environment(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "summary": summary,
        "cells": cells,
    }
    write_json(out / RESULT, result)
    for rule in summary:
        draw_figure(rule, [cell for cell in cells if cell["rule"] == rule], out / f"pareto-{rule}.png")
    print(f"\n{table(cells)}\n\n{fronts(summary)}\n\nwritten: {out / RESULT} and {len(summary)} figures")


def _export(given: argparse.Namespace, out: Path) -> None:
    """Write one rule's violating own answers as rejected.jsonl."""
    if len(given.rules) != 1:
        raise ConfigError(f"--export writes one rule; --rules names {len(given.rules)}")
    rule, seed, answers = given.rules[0], given.seed[0], _answers(out)
    settings = _data_settings(given)
    # The training answers are those that cells are trained on, so that both see the same rejected ones.
    labelled: dict[Split, list[list[OwnAnswer]]] = {}
    for split in SPLITS:
        prompts = prompts_of_split(rule, split)
        if split == "train":
            prompts, drawn = answers.training(rule, settings, seed)
        else:
            drawn = answers.evaluation(prompts, settings.labelled, settings.max_new_tokens, seed)
        labelled[split] = [mine[: settings.labelled] for mine in drawn]
    print(f"{given.export}: rejected answers by split: {export_rows(rule, labelled, Path(given.export))}")


def _cells(given: argparse.Namespace) -> list[Cell]:
    """Rule by rule, so that a stopped run has whole rules."""
    return [
        Cell(
            rule=rule,
            objective=spec,
            learning_rate=rate,
            seed=seed,
            steps=given.steps.get(rule, given.steps[""]),
            groups_per_step=given.groups_per_step,
            eval_every=given.eval_every,
            split=given.split,
            prompts=given.heldout,
            kl_prompts=min(given.kl_prompts, given.heldout),
            pair_prompts=given.pairs,
            data=_data_settings(given),
        )
        for rule in given.rules
        for seed in given.seed
        for spec in given.objectives
        for rate in _rates_of(spec, given.learning_rate)
    ]


def _data_settings(given: argparse.Namespace) -> DataSettings:
    return DataSettings(
        k=given.k,
        labelled=given.labelled,
        negatives_per_prompt=given.negatives_per_prompt,
        anchors=given.anchors,
        negatives=given.negatives,
        noise=given.noise,
        train_prompts=given.train_prompts,
        max_new_tokens=given.max_new_tokens,
    )


def _rates_of(spec: ObjectiveSpec, given: Sequence[str]) -> list[float]:
    """Learning rates of one objective: its own (`npo=5e-5`, or `d2o:beta=0.3=5e-5`), else those named for all."""
    split = [item.rpartition("=") for item in given]
    own = [value for name, _, value in split if name == spec.label] or [
        value for name, _, value in split if name == spec.name
    ]
    try:
        rates = [float(value) for value in own or [value for name, _, value in split if not name]]
    except ValueError as error:
        raise ConfigError(f"--learning-rate: expected X or objective=X, found {','.join(given)}") from error
    if not rates:
        raise ConfigError(f"--learning-rate: none for {spec.label!r} in {','.join(given)}; add one for all, e.g. 1e-4")
    return rates


def parse_objective(text: str) -> ObjectiveSpec:
    """`name[:parameter=value]...`, e.g. `d2o:alpha=0.2:beta=0.3`.

    Raises:
        ConfigError: no such objective or parameter.
    """
    name, *pairs = text.split(":")
    try:
        args = {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    except ValueError as error:
        raise ConfigError(f"--objectives: expected name[:parameter=value], found {text!r}") from error
    make_objective(name, args)
    return ObjectiveSpec(name, args)


def _steps(text: str) -> dict[str, int]:
    """`N`, or `N,rule=N...`: steps by rule, "" for all others."""
    try:
        pairs = [(rule, int(steps)) for rule, _, steps in (item.rpartition("=") for item in text.split(","))]
    except ValueError:
        pairs = []
    if sum(not rule for rule, _ in pairs) != 1 or min(steps for _, steps in pairs) < 1:
        raise argparse.ArgumentTypeError(
            f"expected N or N,rule=N (N for all other rules must be there), every N at least 1; found {text}"
        )
    return dict(pairs)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return int(text)


def _integers(text: str) -> list[int]:
    if not all(item.isdecimal() for item in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, found {text}")
    return [int(item) for item in text.split(",")]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.known_rule",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, help="folder of the result; run again with the same folder to go on")
    add("--rules", default=",".join(RULES), help="comma-separated (default: all)")
    add("--objectives", default="d2o,npo,altpo", help="comma-separated name[:parameter=value]")
    add("--learning-rate", default="1e-4", help="comma-separated X or objective=X; several of one are a grid")
    add("--seed", type=_integers, default=[0], help="comma-separated")
    add("--steps", type=_steps, default=_steps("18"), help="optimizer steps, for all or by rule, e.g. 6,entity=9")
    add("--groups-per-step", type=_at_least_one, default=8)
    add("--eval-every", type=_at_least_one, default=6, help="steps between two measurements")
    add("--split", choices=("dev", "heldout"), default="heldout", help="dev to choose settings (48 prompts a rule)")
    add("--heldout", type=_at_least_one, default=96, help="prompts of the split that are answered")
    add("--kl-prompts", type=_at_least_one, default=32, help="prompts of these on whose answers KL is measured")
    add("--max-new-tokens", type=_at_least_one, default=56)
    add("--k", type=_at_least_one, default=4, help="anchors a prompt")
    add("--labelled", type=_at_least_one, default=8, help="own answers a training prompt that meet the rule")
    add("--negatives-per-prompt", type=_at_least_one, default=2, help="violating answers that are used, at most")
    add("--train-prompts", type=_at_least_one, default=64)
    add("--anchors", choices=get_args(AnchorSource), default="unfiltered")
    add(
        "--negatives",
        choices=get_args(NegativeSource),
        default="own",
        help="rewritten: in another style; reworded: those, said anew by the model",
    )
    add("--noise", type=float, default=0.0, help="share of the negatives that keep the rule")
    add(
        "--pairs",
        type=int,
        help=f"prompts with an acceptable and a violating answer to score; {PAIR_PROMPTS} if not own",
    )
    add("--export", help="write rejected.jsonl of one rule here, and stop")
    add("--quick", action="store_true", help="a very small setting, to see that everything works")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    given = parser.parse_args(arguments)
    given.pairs = given.pairs if given.pairs is not None else PAIR_PROMPTS if given.negatives != "own" else 0
    given.objectives = [parse_objective(text) for text in given.objectives.split(",")]
    given.learning_rate, given.rules = given.learning_rate.split(","), given.rules.split(",")
    labels = {label for spec in given.objectives for label in (spec.label, spec.name)}
    strange = [
        name for name, _, _ in (item.rpartition("=") for item in given.learning_rate) if name not in {"", *labels}
    ]
    if strange:
        raise ConfigError(
            f"--learning-rate: {', '.join(strange)} is none of --objectives; there are: {', '.join(labels)}"
        )
    if given.anchors == "reworded" and given.negatives != "reworded":
        raise ConfigError("--anchors reworded: only with --negatives reworded, so that both sides went the same way")
    if not 0.0 <= given.noise <= 1.0:
        raise ConfigError(f"--noise: expected a share between 0 and 1, found {given.noise}")
    unknown = [rule for rule in (*given.rules, *filter(None, given.steps)) if rule not in RULES]
    if unknown:
        raise ConfigError(f"--rules, --steps: unknown {', '.join(unknown)}; there are: {', '.join(RULES)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
