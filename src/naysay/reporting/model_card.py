"""The model card beside the weights: base model, data, settings, evaluation, limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.run_directory import RunDirectory
from naysay.config.run import RunConfig
from naysay.reporting.formatting import Style, with_interval
from naysay.reporting.verdict import Verdict

_FIGURES: tuple[tuple[str, tuple[str, ...], Style], ...] = (
    ("margin of held-out groups (nats)", ("heldout", "margin"), "signed"),
    ("separation, acceptable minus rejected (nats/token)", ("heldout", "separation"), "signed"),
    ("pairs ranked right, change", ("heldout", "pair_accuracy_change"), "points"),
    ("benign answers, change (nats/token)", ("benign", "nats_per_token_change"), "signed"),
    ("KL base to tuned (nats/token)", ("kl", "base_to_tuned"), "plain"),
    ("KL tuned to base (nats/token)", ("kl", "tuned_to_base"), "plain"),
    ("harmful answers by the judge, change", ("outcomes", "by_kind", "heldout", "change", "harmful"), "points"),
    ("refusals, change", ("generations", "change", "refusal"), "points"),
    ("degenerate answers, change", ("generations", "change", "degenerate"), "points"),
)


def card_path(config: RunConfig, run: RunDirectory) -> Path:
    return (run.adapter if config.training.method == "lora" else run.model) / "README.md"


def model_card(
    config: RunConfig, evaluation: Mapping[str, Any], manifests: Sequence[Manifest], verdict: Verdict, version: str
) -> str:
    """Markdown with the YAML header that model hubs read. All text of the user's is put in as one table cell."""
    is_adapter = config.training.method == "lora"
    environment = Environment(
        loader=PackageLoader("naysay.reporting", "."), undefined=StrictUndefined, keep_trailing_newline=True
    )  # Markdown, not HTML: nothing to escape but the table cells
    counts = {manifest.stage: manifest.counts for manifest in manifests}
    return environment.get_template("model_card.md.j2").render(
        metadata=yaml.safe_dump(
            {
                "base_model": config.model.name,
                "library_name": "peft" if is_adapter else "transformers",
                "pipeline_tag": "text-generation",
                "tags": ["alignment", "d2o", "naysay"],
            }
        ),
        title=_cell(config.model.name),
        verdict=verdict.text,
        version=version,
        facts=_facts(config, counts),
        figures=_figures(evaluation),
        judges=[_cell(name) for name in (evaluation.get("outcomes") or {}).get("judges", ())],
        is_adapter=is_adapter,
        snippet=_snippet(config, is_adapter),
    )


def _facts(config: RunConfig, counts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    training, train = config.training, counts.get("train", {})
    facts = {
        "base model": config.model.name,
        "data": config.data.path,
        "prompt groups trained on": train.get("groups", {}).get("trained", ""),
        "rejected answers": train.get("negatives", ""),
        "anchors (the model's own answers)": train.get("anchors", ""),
        "K": config.anchors.k,
        "objective": training.described,
        "references r+, r-": f"{config.references.positive}, {config.references.negative}",
        "optimizer steps": train.get("steps", ""),
        "learning rate": f"{training.learning_rate:g}",
        "method": f"LoRA, rank {training.lora.rank}" if training.method == "lora" else "all weights",
        "seed": config.seed,
    }
    return [(name, _cell(str(value))) for name, value in facts.items()]


def _figures(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name, path, style in _FIGURES:
        estimate: Any = evaluation
        for key in path:
            estimate = (estimate or {}).get(key)
        if estimate is not None and estimate["value"] is not None:
            rows.append((name, with_interval(estimate, style), str(estimate["n"])))
    return rows


def _snippet(config: RunConfig, is_adapter: bool) -> str:
    if not is_adapter:
        load = 'model = AutoModelForCausalLM.from_pretrained("this/folder")'
        return f"from transformers import AutoModelForCausalLM\n\n{load}"
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({config.model.name!r})\n"
        'model = PeftModel.from_pretrained(base, "this/folder")'
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
