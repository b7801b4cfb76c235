"""`anchors.*`: what is drawn from the initial policy. `sampling.*` says which engine draws it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from naysay.config.base import Section

MORAL_INSTRUCTIONS = (
    "You are a kind and honest assistant. Answer helpfully and politely, and never help to harm people.",
    "Give a useful answer. If the request could hurt someone, break the law or invade privacy, say so and offer a safe "
    "alternative.",
    "Be respectful to everyone. Never insult, mock, talk down to or discriminate against a person or a group.",
    "Tell the truth. Do not help to deceive, cheat or defraud, and state no medical or other claim that is false.",
    "Care for the safety of the user and of others. Warn about dangers and suggest a safer way.",
    "Answer as a responsible and caring expert would: clear, supportive, lawful and without prejudice.",
)


REVISE_INSTRUCTIONS = (
    "Below is a request and a reply to it that people rejected. Write a new reply to the same request that keeps the "
    "tone, the length and the form of the rejected reply, but without what is wrong with it.",
    "People objected to the reply below. Rewrite it so that nobody would object: same style, same length, but kind, "
    "honest and harmless. Write the new reply only.",
)
"""How `anchors.mode: revise` asks; the request and the rejected reply follow. Our wordings."""


class AnchorFilters(Section):
    """When an anchor is not trained on. Every drop is counted by its reason."""

    max_repetition: float = Field(default=0.35, ge=0.0, le=0.35)
    """Dropped as degenerate when more than this share of its word 3-grams are repeats. It can only be made stricter:
    what the offline heuristic calls degenerate (at 0.35, or no language at all) is always dropped."""

    min_tokens: int = Field(default=1, ge=1)
    """Response tokens without the end-of-turn token."""

    drop_refusals: bool = False
    """Drop anchors that the offline heuristic calls a refusal (against over-refusal)."""


SCHEDULE_KEYS = ("warmup_steps", "refresh_every", "refresh_fraction")
"""Keys of `anchors.*` that only `schedule: online` reads."""


class AnchorsConfig(Section):
    """K answers per prompt from the initial policy, drawn under a moral instruction, trained under the bare prompt."""

    k: int = Field(default=11, ge=1)
    """Anchors per prompt. 11 is the paper's."""

    temperature: float = Field(default=0.7, gt=0.0)
    """Our choice (the paper's is unknown): small models write nonsense at 1.0."""

    top_k: int = Field(default=50, ge=0)
    """Keep the k most likely tokens; 0 = all. Our choice."""

    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Keep the smallest set of tokens with this probability. Our choice."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Longest anchor, in tokens."""

    mode: Literal["instruct", "revise", "plain"] = "instruct"
    """`instruct`: drawn under a moral instruction; `plain`: under the bare prompt; `revise`: the model is shown a
    rejected answer of the prompt and asked to rewrite it without what is wrong, so that anchors share its style."""

    instructions: Annotated[tuple[str, ...], Field(min_length=1)] = MORAL_INSTRUCTIONS
    """Moral instructions; each anchor is drawn under one of them. An empty string = the bare prompt. Read when `mode`
    is `instruct`."""

    schedule: Literal["offline", "online"] = "offline"
    """`offline`: drawn once, from the initial policy. `online`: a part is redrawn from the policy that is trained."""

    warmup_steps: int = Field(default=4, ge=0)
    """Optimizer steps before the first refresh. Read when `schedule` is `online`, as are the next two. Our choice."""

    refresh_every: int = Field(default=4, ge=1)
    """Optimizer steps between two refreshes. 1 with `refresh_fraction` 1 and `mode: plain` is strictly on-policy, which
    takes the anchors' pull away. Our choice."""

    refresh_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    """Share of all anchors that one refresh redraws, oldest first. Our choice."""

    acceptable_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Weight, among the anchors of a training prompt, of answers to it that people accepted (column `chosen`, or label
    true), where it has any. They come from where the rejected ones do, so they take the writer's style out of the
    difference. 0 = own samples only."""

    filters: AnchorFilters = Field(default_factory=AnchorFilters)
    """When an anchor is dropped."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = AnchorsConfig.model_fields
        if self.schedule == "offline":
            for name in SCHEDULE_KEYS:
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"anchors.{name} is not read when anchors.schedule is offline; leave it out")
        elif self.acceptable_share > 0.0:
            raise ValueError(
                "anchors.acceptable_share: accepted answers cannot be redrawn; set anchors.schedule: offline"
            )
        if self.mode != "instruct" and self.instructions != MORAL_INSTRUCTIONS:
            raise ValueError(f"anchors.instructions is not read when anchors.mode is {self.mode}; leave it out")
        return self

    @property
    def strictly_on_policy(self) -> bool:
        """Every anchor of every step is a plain draw from the policy in training."""
        bare = self.mode == "plain" or (self.mode == "instruct" and not any(self.instructions))
        return self.schedule == "online" and self.refresh_every == 1 and self.refresh_fraction == 1.0 and bare
