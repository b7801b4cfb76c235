"""Judges from their config: everything that can be wrong is said before the first model loads."""

from collections.abc import Sequence
from pathlib import Path

from naysay.clients.openai import ChatClient, read_key, require_openai
from naysay.config.judging import ClassifierJudge, GuardJudge, JudgeConfig, LLMJudge, OfflineJudge, ScoreModelJudge
from naysay.errors import NaysayError
from naysay.judging.offline import OfflineScorer, require_judge, require_sklearn
from naysay.judging.scorer import Direction, Scorer
from naysay.statistics.agreement import require_krippendorff

ANSWERS = "llm_judge.jsonl"


def check_judges(judges: Sequence[JudgeConfig]) -> None:
    """Raises ConfigError, InputNotFoundError: a package, a folder, a model or a key is missing."""
    for index, judge in enumerate(judges):
        try:
            _check(judge)
        except NaysayError as error:
            raise type(error)(f"judges.{index}: {error}") from error
    if len(judges) > 1:
        require_krippendorff()


def judge_folders(judges: Sequence[JudgeConfig]) -> dict[str, Path]:
    """The folder of each judge that is one on this machine, by its key: what its verdicts depend on.

    Raises:
        InputNotFoundError: a model is not there.
    """
    return {f"judges.{i}": _folder(judge) for i, judge in enumerate(judges) if not isinstance(judge, LLMJudge)}


def _check(judge: JudgeConfig) -> None:
    if isinstance(judge, LLMJudge):
        require_openai()
        read_key(judge.key_env)
        return
    folder = _folder(judge)
    if isinstance(judge, OfflineJudge):
        require_sklearn()
        require_judge(folder)


def _folder(judge: ClassifierJudge | ScoreModelJudge | GuardJudge | OfflineJudge) -> Path:
    if isinstance(judge, OfflineJudge):
        return Path(judge.folder).expanduser()
    from naysay.modeling.loading import resolve

    return resolve(judge.model)


def build_scorers(judges: Sequence[JudgeConfig], kept: Path) -> list[Scorer]:
    """The scorers, in order, with their models loaded. An LLM judge keeps its answers below the folder `kept`.

    Raises:
        ConfigError, InputNotFoundError, ModelError: a judge cannot be used; no model was loaded where it is a missing
            package, folder or key.
    """
    check_judges(judges)
    return [_build(judge, kept) for judge in judges]


def _build(judge: JudgeConfig, kept: Path) -> Scorer:
    match judge:
        case LLMJudge():
            from naysay.judging.asking import LLMAsker
            from naysay.judging.llm_judge import HarmJudge

            client = ChatClient(
                judge.base_url,
                judge.model,
                key_env=judge.key_env,
                concurrency=judge.concurrency,
                retries=judge.retries,
                timeout=judge.timeout,
            )
            return HarmJudge(LLMAsker(client, kept / ANSWERS))
        case OfflineJudge():
            return OfflineScorer(_folder(judge), threshold=judge.threshold)
        case _:
            return _build_model(judge)


def _build_model(judge: ClassifierJudge | ScoreModelJudge | GuardJudge) -> Scorer:
    from naysay.judging.classifier import ClassifierScorer, ScoreModelScorer
    from naysay.judging.guard import GuardScorer

    place = judge.model_dump(include={"batch_size", "device", "dtype"})
    match judge:
        case ClassifierJudge():
            direction = Direction[judge.direction.upper()]
            return ClassifierScorer(
                judge.model,
                reads=judge.reads,
                direction=direction,
                label=judge.label,
                threshold=judge.threshold,
                **place,
            )
        case ScoreModelJudge():
            return ScoreModelScorer(judge.model, score=judge.score, **place)
        case GuardJudge():
            return GuardScorer(judge.model, guard=judge.guard, **place)
