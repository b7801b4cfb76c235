"""`anchors.*`: what is drawn from the initial policy. `sampling.*` says which engine draws it."""

from typing import Annotated

from pydantic import Field

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


class AnchorFilters(Section):
    """When an anchor is not trained on. Every drop is counted by its reason."""

    max_repetition: float = Field(default=0.35, ge=0.0, le=1.0)
    """Degenerate when more than this share of its word 3-grams are repeats."""

    min_tokens: int = Field(default=1, ge=1)
    """Response tokens without the end-of-turn token."""

    drop_refusals: bool = False
    """Drop anchors that the offline heuristic calls a refusal (against over-refusal)."""


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

    instructions: Annotated[tuple[str, ...], Field(min_length=1)] = MORAL_INSTRUCTIONS
    """Moral instructions; each anchor is drawn under one of them. An empty string = the bare prompt."""

    filters: AnchorFilters = Field(default_factory=AnchorFilters)
    """When an anchor is dropped."""
