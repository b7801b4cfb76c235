"""What judges say of the answers before and after: the four outcomes, what changed, and how far judges agree."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from naysay.config.judging import JudgeConfig
from naysay.judging.asking import Cost
from naysay.judging.build import build_scorers
from naysay.judging.heuristics import HeuristicScorer
from naysay.judging.llm_judge import HarmJudge
from naysay.judging.outcomes import count_outcomes, harm_agreement, outcome_of
from naysay.judging.scorer import LABELS, Judged, Verdict
from naysay.records import Generation, GenerationVerdict, Prompt
from naysay.statistics import HOLM_ABOVE, Estimate, holm, mcnemar, paired_proportion_change

MODELS = ("base", "tuned")


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts on the same generations, in their order: of form, and of each judge of harm by its name.

    `costs` are those of judges behind a server.
    """

    generations: Sequence[Generation]
    form: Sequence[Verdict]
    harm: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)

    def rows(self) -> list[GenerationVerdict]:
        """One row for each scorer and generation."""
        scorers = {HeuristicScorer.name: self.form, **self.harm}
        return [
            GenerationVerdict(item.prompt_id, item.model, name, verdict.value, verdict.label, verdict.invalid)
            for name, verdicts in scorers.items()
            for item, verdict in zip(self.generations, verdicts, strict=True)
        ]

    def counts(self) -> dict[str, Any]:
        """Of each judge the answers with and without a valid verdict; of one behind a server also the tokens."""
        counts: dict[str, Any] = {"verdicts": {name: _valid(verdicts) for name, verdicts in self.harm.items()}}
        return counts | ({"cost": {name: asdict(cost) for name, cost in self.costs.items()}} if self.costs else {})


def judge(
    generations: Sequence[Generation], prompts: Sequence[Prompt], judges: Sequence[JudgeConfig], kept: Path
) -> Judgement:
    """Ask the heuristics and then each judge, one model in memory at a time.

    Args:
        prompts: among them those of the generations, with their whole conversations.
        kept: the folder in which the answers of judges behind a server are kept.

    Raises:
        ConfigError, InputNotFoundError, ModelError, ServerError: a judge cannot be used.
    """
    messages = {prompt.prompt_id: prompt.messages for prompt in prompts}
    items = [Judged(messages[item.prompt_id], item.text, item.finish) for item in generations]
    form = HeuristicScorer().score(items)
    harm: dict[str, Sequence[Verdict]] = {}
    costs: dict[str, Cost] = {}
    for config in judges if items else ():
        (scorer,) = build_scorers([config], kept)
        # Two judges may be the same model with other settings.
        name = scorer.name if scorer.name not in harm else f"{scorer.name} ({len(harm) + 1})"
        harm[name] = scorer.score(items)
        if isinstance(scorer, HarmJudge):
            costs[name] = scorer.asker.cost
    return Judgement(generations, form, harm, costs)


def outcome_report(judgement: Judgement, *, samples: int, seed: int) -> dict[str, Any] | None:
    """The outcomes by kind of prompt, for evaluation.json; None without a judge of harm, since no answer is then known
    to be safe. The first judge decides.

    Changes are paired by prompt, over the prompts whose two answers were both judged. Where more than 5 of them are
    compared, their p-values (McNemar's mid-p) are adjusted together after Holm; a kind of which no prompt was judged
    twice has none.

    Args:
        samples, seed: of the bootstrap of the judges' agreement.
    """
    if not judgement.harm:
        return None
    kinds = sorted({item.kind for item in judgement.generations})
    by_kind = {kind: _of_kind(judgement, kind) for kind in kinds}
    _adjust(by_kind)
    lookalike = by_kind.get("lookalike")
    several = len(judgement.harm) > 1
    return {
        "judges": list(judgement.harm),
        "by_kind": by_kind,
        "over_refusal": lookalike and {part: lookalike[part]["refusal"] for part in (*MODELS, "change")},
        "agreement": harm_agreement(list(judgement.harm.values()), samples, seed) if several else None,
    }


def _adjust(by_kind: Mapping[str, dict[str, Any]]) -> None:
    """Put `p_holm` beside the p-values. A change that rests on no prompt is no comparison and is not counted as one."""
    found = {
        (kind, label): p for kind, shares in by_kind.items() for label, p in shares["p_value"].items() if p is not None
    }
    adjusted = dict(zip(found, holm(list(found.values())), strict=True)) if len(found) > HOLM_ABOVE else {}
    for kind, shares in by_kind.items():
        shares["p_holm"] = {label: adjusted.get((kind, label)) for label in LABELS}


def _of_kind(judgement: Judgement, kind: str) -> dict[str, Any]:
    first = next(iter(judgement.harm.values()))
    found = {model: _of_model(judgement, first, kind, model) for model in MODELS}
    outcomes = {model: {prompt: outcome_of(*pair) for prompt, pair in found[model].items()} for model in MODELS}
    both = [
        (before, outcomes["tuned"][prompt])
        for prompt, before in outcomes["base"].items()
        if before is not None and outcomes["tuned"].get(prompt) is not None
    ]
    flags = {label: ([b == label for b, _ in both], [t == label for _, t in both]) for label in LABELS}
    return {
        **{model: _shares(found[model].values()) for model in MODELS},
        "change": {
            **{label: paired_proportion_change(*pair) for label, pair in flags.items()},
            "most_harmful": _most_harmful_change(outcomes),
        },
        "p_value": {label: mcnemar(*pair).mid_p if both else None for label, pair in flags.items()},
    }


def _most_harmful_change(outcomes: Mapping[str, Mapping[str, str | None]]) -> Estimate:
    """The change of harmful answers if all unjudged ones are, before and after: what a judge that does not answer for
    one of the two models would hide."""
    prompts = [prompt for prompt in outcomes["base"] if prompt in outcomes["tuned"]]
    flags = [[outcomes[model][prompt] in (None, "harmful") for prompt in prompts] for model in MODELS]
    return paired_proportion_change(*flags)


def _of_model(
    judgement: Judgement, harm: Sequence[Verdict], kind: str, model: str
) -> dict[str, tuple[Verdict, Verdict]]:
    """Prompt id -> the verdicts on form and on harm of this model's answer."""
    rows = zip(judgement.generations, judgement.form, harm, strict=True)
    return {item.prompt_id: (form, said) for item, form, said in rows if (item.kind, item.model) == (kind, model)}


def _shares(pairs: Collection[tuple[Verdict, Verdict]]) -> dict[str, Any]:
    counts = count_outcomes([form for form, _ in pairs], [harm for _, harm in pairs])
    return {
        **{label: counts.share(label) for label in LABELS},
        "most_harmful": counts.most_harmful,
        "unjudged": counts.unjudged,
        "contested": counts.contested,
    }


def _valid(verdicts: Sequence[Verdict]) -> dict[str, int]:
    invalid = sum(bool(verdict.invalid) for verdict in verdicts)
    return {"in": len(verdicts), "valid": len(verdicts) - invalid, "invalid": invalid}
