"""What a sampling engine is: a function from prompts with seeds to responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from naysay.records import Finish


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """The distribution that responses are drawn from. `top_k` 0 and `top_p` 1 switch the truncation off."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One response to draw: ids of its prompt and the seed of its own random stream."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Response:
    """Sampled ids (with the end-of-turn token when `finish` is "stop") and their log-probs (nats) under the truncated
    sampling distribution."""

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    finish: Finish


class Sampler(Protocol):
    """A sampling engine. `name` and `policy_digest` are recorded with every response."""

    name: str
    policy_digest: str

    def sample(self, requests: Sequence[Request], settings: SamplingSettings) -> list[Response]:
        """Responses in the order of the requests; equal batches give equal responses."""
        ...
