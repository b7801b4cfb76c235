"""A folder with input files, a recipe and a tiny model, and the command line in this process."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import make_model, make_tokenizer
from naysay.artifacts.run_directory import RunDirectory
from naysay.cli.main import main
from naysay.modeling.progress import quiet_loading

TOPICS = (
    "my noisy neighbour upstairs",
    "a lost wallet in the park",
    "an exam that I did not study for",
    "the headache since last week",
    "a friend who owes me money",
    "the password of my sister",
    "losing weight before summer",
    "a bad review of our restaurant",
    "the tax form of this year",
    "a dog barking at night",
    "an interview on Monday morning",
    "medicine for my grandmother",
    "the broken window at school",
    "a rumour about our teacher",
    "selling a car with rust",
    "an argument with my boss",
)
BENIGN = (
    ("How do I boil an egg?", "Seven minutes in hot water."),
    ("Name three rivers of France.", "Loire, Seine, Rhone."),
    ("How do I kill a Python process?", "Find its id with ps, then use kill."),
    ("What is the plural of ox?", "Oxen."),
)
RECIPE = {
    "data": {"heldout_fraction": 0.25, "dev_fraction": 0.0},
    "model": {"max_length": 256},
    "anchors": {"k": 3, "max_new_tokens": 8, "instructions": ["Be kind.", "Be honest."]},
    "sampling": {"batch_size": 12},
    "training": {"max_steps": 4, "groups_per_step": 2, "save_steps": 1, "learning_rate": 0.01, "lora": {"rank": 4}},
    # The learning rate is one that no real run has.
    "guard": {"every": 2, "prompts": 4, "max_new_tokens": 8, "max_anchor_fall": 30.0, "max_degenerate_rise": 1.0},
    "evaluation": {
        "heldout_generations": 2,
        "benign_generations": 2,
        "max_new_tokens": 8,
        "bootstrap_samples": 200,
    },
}


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rejected_rows() -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Tell me about {topic}.",
            "rejected": f"Who cares, fool number {i}!",
            "chosen": f"Gladly: step {i}.",
        }
        for i, topic in enumerate(TOPICS)
    ]


@dataclass
class Workplace:
    """A folder with input files, a recipe and a model. `naysay("align", ...)` gives the exit code."""

    folder: Path
    model: Path
    capture: pytest.CaptureFixture[str] | None = None
    out: str = ""
    err: str = ""

    @property
    def data(self) -> Path:
        return self.folder / "rejected.jsonl"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def __call__(self, *arguments: object) -> int:
        if self.capture is None:
            return main([str(argument) for argument in arguments])
        self.capture.readouterr()
        code = main([str(argument) for argument in arguments])
        self.out, self.err = self.capture.readouterr()
        return code

    def command(self, out: str, *settings: str, model: Path | None = None, stage: str = "align") -> list[str]:
        """The arguments that do a run in folder `out`."""
        sets = [part for setting in settings for part in ("--set", setting)]
        files = [str(self.data), "--recipe", str(self.recipe), "--model", str(model or self.model)]
        return [stage, *files, "--out", str(self.folder / out), *sets]

    def do(self, out: str, *settings: str, model: Path | None = None, stage: str = "align") -> RunDirectory:
        """A run that must succeed."""
        assert self(*self.command(out, *settings, model=model, stage=stage)) == 0, self.err
        return self.run(out)

    def run(self, out: str) -> RunDirectory:
        return RunDirectory(self.folder / out)

    def refused(self, *arguments: object) -> str:
        """The one line of a command that must fail as the user's mistake; progress lines may stand before it."""
        assert self(*arguments) == 2, self.err
        *before, last = self.err.splitlines()
        assert not any("error" in line or "Traceback" in line for line in before), self.err
        assert last.startswith("naysay: error: ")
        return last.removeprefix("naysay: error: ")


def save_model(folder: Path, kind: str = "llama", *, template: bool = True, seed: int = 0, **changes: object) -> Path:
    """A local model folder, as a user would have it."""
    tokenizer = make_tokenizer()
    model = make_model(kind, seed=seed, **changes)
    if kind == "llama":
        prefer_letters(model, tokenizer)
    if not template:
        tokenizer.chat_template = None
    with quiet_loading():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prefer_letters(model: Any, tokenizer: Any) -> None:
    """Random bytes are degenerate and would all be dropped. With one constant direction in the residual stream the
    head has a bias: towards letters, and a little towards the end of the turn."""
    letters = tokenizer("etaoinshrdlu", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 2.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[letters, 0] = 1.2
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 1.2


def fill(folder: Path) -> None:
    """The input files and the recipe."""
    write_rows(folder / "rejected.jsonl", rejected_rows())
    benign = write_rows(folder / "benign.jsonl", [{"prompt": prompt, "chosen": answer} for prompt, answer in BENIGN])
    recipe = {**RECIPE, "data": {**RECIPE["data"], "benign": str(benign)}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
