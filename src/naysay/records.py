"""The records that stages exchange on disk: frozen, free of torch, one JSONL row each.

Ids are content digests, so that the same prompt has the same id in every run and no stage depends on row order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "dev", "heldout", "benign", "suite"]
Finish = Literal["stop", "length"]
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for an answer.

    Example: `Prompt("p-3f2a", ({"role": "user", "content": "Hi"},), "rejected.jsonl:1", "train")`.
    `split` is "benign" for prompts that only serve to measure what must not change, "suite" for a `SuitePrompt`.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    source: str
    split: Split
    kind: str = ""


@dataclass(frozen=True, slots=True)
class SuitePrompt(Prompt):
    """A prompt of one of `evaluation.suites`: `kind` is "lookalike", "safety" or "benign".

    Its id begins with "s-" and is that of no prompt of the data. Example:
        SuitePrompt("s-3f2a", (...), "xstest.csv:2", "suite", "lookalike", suite="xstest", category="homonyms")
    """

    suite: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Negative:
    """An answer that people rejected. `finish` is "length" when the log says that the answer was cut off."""

    negative_id: str
    prompt_id: str
    text: str
    category: str = ""
    severity: float | None = None
    annotators: int | None = None
    provenance: str = ""
    finish: Finish = "stop"


@dataclass(frozen=True, slots=True)
class Acceptable:
    """An answer that was not rejected (chosen, liked): what rejected answers of the same source are compared with.

    Trained on only where `anchors.acceptable_share` or an objective that reads `chosen` asks for it.
    """

    acceptable_id: str
    prompt_id: str
    text: str
    category: str = ""
    severity: float | None = None
    annotators: int | None = None
    provenance: str = ""
    finish: Finish = "stop"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A response that the initial policy itself gave to a prompt, under a moral instruction.

    `token_ids` are the sampled ids (end-of-turn included when `finish` is "stop"): they are trained on as they are.
    `token_logprobs` (nats) were seen while sampling, under another prompt and a truncated distribution: a diagnostic,
    never a reference log-prob.
    """

    anchor_id: str
    prompt_id: str
    index: int
    round: int
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    text: str
    finish: Finish
    instruction_id: str
    seed: int
    policy_digest: str
    sampler: str


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer said of one anchor or generation: a value (its unit is the scorer's) and a label."""

    subject_id: str
    scorer: str
    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which anchors of a prompt are trained on.

    `kept` holds anchor ids; equal responses appear once for each time they were drawn (their multiplicity is part of
    the distribution). `dropped` maps a reason to the ids that it removed.
    """

    prompt_id: str
    kept: tuple[str, ...]
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReferenceLogp:
    """One cached reference log-prob: the *sum* over response tokens, in nats."""

    sequence_digest: str
    role: Literal["negative", "positive"]
    logp: float
    tokens: int
    reference_digest: str


@dataclass(frozen=True, slots=True)
class PromptEvaluation:
    """What the evaluation measured on one prompt, so that two runs can be compared prompt by prompt.

    Log-ratios and KLs are sums in nats and stand beside their tokens; an answer of a kind that the prompt does not have
    counts 0 tokens. `kind` is "heldout" for the prompts of the evaluated split, else "benign", "lookalike" or "safety".
    Example:
        PromptEvaluation("p-3f2a", "heldout", margins=(0.4,), negative_log_ratio=-4.0, negative_tokens=9)
    """

    prompt_id: str
    kind: str
    margins: tuple[float, ...] = ()
    """Of each rejected answer, where the prompt has anchors."""
    separation: float | None = None
    """Nats per token; None where the prompt lacks an acceptable or a rejected answer, or is benign."""
    pairs_right_base: tuple[bool, ...] = ()
    pairs_right_tuned: tuple[bool, ...] = ()
    """For each pair (acceptable, rejected): the acceptable answer has the higher log-prob per token."""
    negatives: tuple[tuple[float, int], ...] = ()
    """(log-ratio in nats, tokens) of each rejected answer, in the order of negatives.jsonl."""
    negative_log_ratio: float = 0.0
    negative_tokens: int = 0
    anchor_log_ratio: float = 0.0
    anchor_tokens: int = 0
    acceptable_log_ratio: float = 0.0
    acceptable_tokens: int = 0
    kl_base_to_tuned: tuple[float, int] | None = None
    kl_tuned_to_base: tuple[float, int] | None = None
    """(sum in nats, tokens), on the generation of the first-named policy; None where it was not measured."""
    outcome_base: str | None = None
    outcome_tuned: str | None = None
    """Class of the generation; None where the prompt was not answered."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A response drawn for evaluation. `model` is "base" or "tuned"; `outcome` is what the offline heuristic says.

    `suite` and `category` are those of a `SuitePrompt`, empty for the prompts of the data.
    """

    prompt_id: str
    prompt: str
    kind: str
    model: str
    model_digest: str
    seed: int
    token_ids: tuple[int, ...]
    text: str
    finish: Finish
    outcome: Literal["answer", "refusal", "degenerate"]
    suite: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class GenerationVerdict:
    """What one scorer says of one generation. `value` is in the scorer's own unit.

    `label` is None where the scorer does not judge this; `invalid` says why there is no verdict at all. Example:
        GenerationVerdict("p-3f2a", "tuned", "offline:mine", 0.12, "safe", "")
    """

    prompt_id: str
    model: str
    scorer: str
    value: float | None
    label: Literal["safe", "refusal", "degenerate", "harmful"] | None
    invalid: str
