"""Judges of harm: which model or server says whether an answer is harmful. The heuristics need no settings.

The direction of a score is a part of its kind; only a classifier, which may be anything, is told its own.
"""

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from naysay.config.base import Section


class _ModelJudge(Section):
    """A judge that is a model on this machine."""

    model: str = Field(min_length=1)
    """A local folder or a Hugging Face hub id."""

    batch_size: int = Field(default=4, ge=1)
    """Answers in one forward."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; `auto` is bfloat16 on a GPU that has it and float32 elsewhere."""


class ClassifierJudge(_ModelJudge):
    """Any sequence-classification model."""

    kind: Literal["classifier"]
    """Decides which settings a judge has."""

    reads: Literal["response", "pair", "chat"]
    """What the model was trained on: the answer, the pair (prompt, answer), or the chat in its own template."""

    direction: Literal["higher_is_worse", "higher_is_better"]
    """What a high value means."""

    label: str | None = None
    """Name or number of the class whose probability is the value; None for a model with one output."""

    threshold: float | None = None
    """On the bad side of it an answer is harmful; None = scores without a verdict."""


class ScoreModelJudge(_ModelJudge):
    """A cost or reward model of safe-rlhf, such as PKU-Alignment/beaver-7b-v1.0-cost."""

    kind: Literal["score_model"]
    """Decides which settings a judge has."""

    score: Literal["cost", "reward"]
    """A cost is above 0 for harmful answers; a reward is higher for better ones and labels nothing."""


class GuardJudge(_ModelJudge):
    """A generative guard."""

    kind: Literal["guard"]
    """Decides which settings a judge has."""

    guard: Literal["llama_guard", "wildguard", "qwen3guard", "shieldgemma", "granite_guardian"]
    """Whose prompt and whose verdicts: the model must be of this family."""


def check_base_url(url: str) -> str:
    """The address of a server, as it is. What may be a secret is refused, and shown in no message: settings are written
    to files and shown in reports.

    Raises:
        ValueError: no http(s) address, or one with a name, a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, a port that is no number
        parts, usable = None, False
    if parts is None or not usable or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError("expected the address of a server, such as http://localhost:8000/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ValueError(
            "expected an address without a name, password, query or fragment, since it is written to files; put the "
            "key in an environment variable and name it in key_env"
        )
    return url


class LLMJudge(Section):
    """A model behind an OpenAI-compatible server, asked with a rubric."""

    kind: Literal["llm_judge"]
    """Decides which settings a judge has."""

    base_url: Annotated[str, AfterValidator(check_base_url)]
    """The server's address up to and including `/v1`, without a key or a password in it."""

    model: str = Field(min_length=1)
    """The model's name at the server."""

    key_env: str | None = Field(default=None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    """The *name* of the environment variable that holds the key; None for a server without keys."""

    concurrency: int = Field(default=8, ge=1)
    """Requests at the same time."""

    retries: int = Field(default=5, ge=0)
    """Of a request that failed for a passing reason (429, 5xx, lost connection), with growing waits."""

    timeout: float = Field(default=120.0, gt=0.0)
    """Seconds for one request."""


class OfflineJudge(Section):
    """A judge that `naysay judge fit` wrote."""

    kind: Literal["offline"]
    """Decides which settings a judge has."""

    folder: str = Field(min_length=1)
    """The folder that it wrote."""

    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Above this probability an answer is harmful."""


JudgeConfig = Annotated[
    ClassifierJudge | ScoreModelJudge | GuardJudge | LLMJudge | OfflineJudge, Field(discriminator="kind")
]
JUDGES: Mapping[str, type[Section]] = {
    "classifier": ClassifierJudge,
    "score_model": ScoreModelJudge,
    "guard": GuardJudge,
    "llm_judge": LLMJudge,
    "offline": OfflineJudge,
}
"""The settings of each kind."""


WHERE_AND_HOW_FAST = frozenset({"batch_size", "device", "concurrency", "retries", "timeout", "key_env"})
"""Settings that say where and how fast a judge works. They change no verdict and belong to no result's identity."""


def verdict_settings(judge: Section) -> dict[str, object]:
    """The settings of a judge that its verdicts depend on."""
    return judge.model_dump(mode="json", exclude=set(WHERE_AND_HOW_FAST))


def _check(judges: tuple[JudgeConfig, ...]) -> tuple[JudgeConfig, ...]:
    if judges:
        first = judges[0]
        silent = isinstance(first, ScoreModelJudge) and first.score == "reward"
        if silent or (isinstance(first, ClassifierJudge) and first.threshold is None):
            raise ValueError(
                "judges: the first one decides what is harmful, but this one gives scores without verdicts; put a "
                "judge with a verdict first, or set its threshold"
            )
    for index, judge in enumerate(judges):
        if judge in judges[:index]:
            raise ValueError(f"judges: number {index + 1} is the same as an earlier one; leave it out")
    return judges


Judges = Annotated[tuple[JudgeConfig, ...], AfterValidator(_check)]
