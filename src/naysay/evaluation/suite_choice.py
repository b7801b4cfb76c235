"""Which prompts of the suites are asked, and what became of each of the others: every one is counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_text
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_jsonl, read_records, write_records
from naysay.config.run import RunConfig
from naysay.errors import ConversationError
from naysay.evaluation.leakage import find_leaks
from naysay.evaluation.suites import Suite, read_suites
from naysay.inputs.shingles import spoken_words
from naysay.modeling.chat import encode_prompt
from naysay.records import Message, Prompt, SuitePrompt

REASONS = ("other_kind", "duplicate", "leaked_exact", "leaked_near", "too_long", "chat_template", "over_limit")
"""Why a prompt of a suite is not asked; the first that applies counts."""


@dataclass(frozen=True, slots=True)
class SuiteCounts:
    """What became of the prompts of a suite: `prompts` in = used + left out by reason (`REASONS`)."""

    name: str
    prompts: int
    used: int
    left_out: Mapping[str, int]
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Of the used prompts."""

    def row(self) -> dict[str, Any]:
        """The row in evaluation.json."""
        return {
            "name": self.name,
            "kinds": dict(self.kinds),
            "prompts": self.prompts,
            **{reason: self.left_out.get(reason, 0) for reason in REASONS},
            "used": self.used,
        }

    def as_counts(self) -> dict[str, int]:
        """For the manifest: `in` is the sum of the others."""
        return {"in": self.prompts, "used": self.used, **self.left_out}


def choose_prompts(
    config: RunConfig, run: RunDirectory, tokenizer: Any, asked: Sequence[Prompt], normal: Path
) -> tuple[list[SuitePrompt], list[SuiteCounts]]:
    """The prompts of `evaluation.suites` that are asked, and the counts of each suite.

    The prompts are also written to suite_prompts.jsonl: whoever judges the answers later needs the conversations.

    Args:
        asked: the prompts of the data that are asked.
        normal: the file with the ids of the benign prompts that were trained on.

    Raises:
        InputNotFoundError, DataError: a suite cannot be used.
    """
    if not config.evaluation.suites:
        return [], []

    def problem(prompt: SuitePrompt) -> str:
        try:
            tokens = len(encode_prompt(tokenizer, prompt.messages))
        except ConversationError:
            return "chat_template"
        return "too_long" if tokens + config.evaluation.max_new_tokens > config.model.max_length else ""

    also_trained = {row["prompt_id"] for row in read_jsonl(normal)}
    prompts = read_records(run.prompts, Prompt)
    chosen, counts = choose(
        read_suites(config.evaluation.suites),
        asked=asked,
        trained=[p.messages for p in prompts if p.split == "train" or p.prompt_id in also_trained],
        threshold=config.data.near_duplicate_threshold,
        problem=problem,
    )
    write_records(run.suite_prompts, chosen)
    return chosen, counts


def choose(
    suites: Sequence[Suite],
    *,
    asked: Sequence[Prompt],
    trained: Sequence[Sequence[Message]],
    threshold: float,
    problem: Callable[[SuitePrompt], str],
) -> tuple[list[SuitePrompt], list[SuiteCounts]]:
    """The prompts that are asked, suite by suite, and the counts of each suite.

    Left out are prompts with the words of one that is asked already (`asked`, or earlier in the suites), and those that
    occur in training.

    Args:
        trained: the prompts that were trained on.
        threshold: from which similarity on a prompt is near one of these.
        problem: why the model cannot be asked a prompt: "too_long", "chat_template", or "".
    """
    seen = {spoken_words(prompt.messages) for prompt in asked}
    chosen, counts = [], []
    leaks = iter(find_leaks([p.messages for suite in suites for p in suite.prompts], trained, threshold=threshold))
    for suite in suites:
        left_out = dict.fromkeys(REASONS, 0) | {"other_kind": suite.other_kind}
        usable = []
        for prompt in suite.prompts:
            words, leak = spoken_words(prompt.messages), next(leaks)
            reason = "duplicate" if words in seen else f"leaked_{leak}" if leak else problem(prompt)
            seen.add(words)
            if reason:
                left_out[reason] += 1
            else:
                usable.append(prompt)
        used = _limited(usable, suite.limit)
        left_out["over_limit"] = len(usable) - len(used)
        kinds = sorted(prompt.kind for prompt in used)
        counts.append(
            SuiteCounts(
                suite.name,
                len(suite.prompts) + suite.other_kind,
                len(used),
                left_out,
                {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            )
        )
        chosen += used
    return chosen, counts


def _limited(prompts: Sequence[SuitePrompt], limit: int | None) -> list[SuitePrompt]:
    """At most `limit` prompts, from each kind and category in turn. Which ones depends neither on the seed nor on the
    order of the file, so that runs can be compared."""
    if limit is None or len(prompts) <= limit:
        return list(prompts)
    groups: dict[tuple[str, str], list[SuitePrompt]] = {}
    for prompt in sorted(prompts, key=lambda prompt: digest_text("limit", prompt.prompt_id)):
        groups.setdefault((prompt.kind, prompt.category), []).append(prompt)
    turns = [(turn, digest_text(*key), prompt) for key, group in groups.items() for turn, prompt in enumerate(group)]
    kept = {prompt.prompt_id for _, _, prompt in sorted(turns, key=lambda item: item[:2])[:limit]}
    return [prompt for prompt in prompts if prompt.prompt_id in kept]
