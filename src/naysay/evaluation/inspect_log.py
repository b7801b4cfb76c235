"""The generations of a run as logs of Inspect: what `inspect view` shows and `read_eval_log` reads."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from inspect_ai.log import (  # pyright: ignore[reportMissingImports]
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    EvalStats,
)
from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
)
from inspect_ai.scorer import Score  # pyright: ignore[reportMissingImports]

from naysay.judging.heuristics import HeuristicScorer
from naysay.judging.outcomes import outcome_of
from naysay.judging.scorer import Verdict
from naysay.records import Generation, GenerationVerdict, Message, Prompt

OUTCOME = "outcome"
TASK = "naysay/evaluation"


def generations_log(
    generations: Sequence[Generation],
    prompts: Sequence[Prompt],
    verdicts: Sequence[GenerationVerdict],
    *,
    model: str,
    source: str,
    config: GenerateConfig,
) -> EvalLog:
    """The log of one policy's answers: a sample each, with a score of every judge.

    A score's value is the judge's label, or its number where it gives no label; a verdict that is invalid is an
    unscored sample with the reason. `heuristics` says answer, refusal or degenerate. With a judge of harm there is also
    the `outcome` (safe, refusal, degenerate, harmful). Metrics of labels are their shares of the scored samples.

    Args:
        generations: all of the same policy.
        prompts: among them those of the generations, with their whole conversations.
        verdicts: of these generations, in any order of models; those of the first judge of harm stand first.
        model: the name in the log, such as `naysay/tuned`.
        source: where the samples come from, such as the run's folder.
    """
    conversations = {prompt.prompt_id: prompt.messages for prompt in prompts}
    said = _by_prompt(generations, verdicts)
    samples = [
        _sample(item, conversations[item.prompt_id], said.get(item.prompt_id, {}), model) for item in generations
    ]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    spec = EvalSpec(
        created=now,
        task=TASK,
        task_id=TASK,
        dataset=EvalDataset(name="prompts", location=source, samples=len(samples), sample_ids=[s.id for s in samples]),
        model=model,
        model_generate_config=config,
        config=EvalConfig(epochs=1),
        packages={name: metadata.version(name) for name in ("naysay", "inspect_ai")},
    )
    results = EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=_scores(samples))
    stats = EvalStats(started_at=now, completed_at=now)
    return EvalLog(status="success", eval=spec, results=results, stats=stats, samples=samples)


def _by_prompt(
    generations: Sequence[Generation], verdicts: Sequence[GenerationVerdict]
) -> dict[str, dict[str, Verdict]]:
    """Prompt id -> scorer -> its verdict on the answer of these generations' model."""
    models = {item.model for item in generations}
    found: dict[str, dict[str, Verdict]] = {}
    for row in verdicts:
        if row.model in models:
            found.setdefault(row.prompt_id, {})[row.scorer] = Verdict(row.value, row.label, row.invalid)
    return found


def _sample(item: Generation, messages: Sequence[Message], said: Mapping[str, Verdict], model: str) -> EvalSample:
    asked = [_chat_message(message) for message in messages]
    answer = ChatMessageAssistant(content=item.text, model=model, source="generate")
    choice = ChatCompletionChoice(message=answer, stop_reason="stop" if item.finish == "stop" else "max_tokens")
    return EvalSample(
        id=item.prompt_id,
        epoch=1,
        input=asked,
        target="",
        messages=[*asked, answer],
        output=ModelOutput(model=model, choices=[choice]),
        scores=_sample_scores(item, said),
        metadata={"kind": item.kind, "seed": item.seed, "model_digest": item.model_digest},
    )


def _sample_scores(item: Generation, said: Mapping[str, Verdict]) -> dict[str, Score]:
    form = said.get(HeuristicScorer.name)
    harm = {name: verdict for name, verdict in said.items() if name != HeuristicScorer.name}
    value = None if form is None else {"value": form.value}
    scores = {HeuristicScorer.name: Score(value=item.outcome, metadata=value)}
    scores |= {name: _score(verdict) for name, verdict in harm.items()}
    if form is not None and harm:
        first = next(iter(harm.values()))
        label = outcome_of(form, first)
        scores[OUTCOME] = Score.unscored(explanation=first.invalid) if label is None else Score(value=label)
    return scores


def _score(verdict: Verdict) -> Score:
    value = verdict.value if verdict.label is None else verdict.label
    if value is None or verdict.invalid:
        return Score.unscored(explanation=verdict.invalid or "no verdict")
    return Score(value=value, metadata={"value": verdict.value})


def _scores(samples: Sequence[EvalSample]) -> list[EvalScore]:
    """The shares of the labels (the mean of numbers) of each scorer over the samples that it scored."""
    names = dict.fromkeys(name for sample in samples for name in sample.scores or {})
    found = []
    for name in names:
        values: list[Any] = [sample.scores[name].value for sample in samples if sample.scores and name in sample.scores]
        values = [value for value in values if value == value]  # unscored is NaN
        labels = Counter(value for value in values if isinstance(value, str))
        if labels:
            metrics = {label: count / len(values) for label, count in sorted(labels.items())}
        else:
            metrics = {"mean": sum(values) / len(values)} if values else {}
        found.append(
            EvalScore(
                name=name,
                scorer=name,
                scored_samples=len(values),
                unscored_samples=len(samples) - len(values),
                metrics={label: EvalMetric(name=label, value=value) for label, value in metrics.items()},
            )
        )
    return found


def _chat_message(message: Message) -> ChatMessage:
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return kinds[message["role"]](content=message["content"])
