"""Stage `evaluate`: held-out likelihoods, benign retention, KL both ways, generations before and after."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl, read_records, write_json, write_records
from naysay.config.judging import verdict_settings
from naysay.config.run import RunConfig
from naysay.errors import RunDirectoryError
from naysay.evaluation.cases import NORMAL_PROMPTS, Answers, Case, read_cases
from naysay.evaluation.generations import generate_both, kind_of, outcome_metrics
from naysay.evaluation.likelihood import HeldoutGroup, Scores, heldout_metrics, nats_per_token, source_counts
from naysay.evaluation.outcomes import judge, outcome_report
from naysay.evaluation.prompts import KLValues, prompt_rows
from naysay.evaluation.suite_choice import SuiteCounts, choose_prompts
from naysay.evaluation.suites import suite_files
from naysay.judging.build import judge_folders
from naysay.modeling.adapters import INITIAL, BaseAndTuned, load_reference
from naysay.modeling.chat import template_file
from naysay.modeling.digests import policy_digest
from naysay.modeling.divergence import kl_divergence
from naysay.modeling.forward import token_budget
from naysay.modeling.loading import load_tokenizer, pick_device, resolve
from naysay.modeling.reference import score_groups
from naysay.records import Generation, Prompt, SuitePrompt
from naysay.statistics.estimate import Estimate
from naysay.statistics.paired import bootstrap_mean, bootstrap_ratio_mean

VERSION = 5
TRAINED_GROUPS = "groups.jsonl"


def settings(config: RunConfig) -> dict[str, Any]:
    evaluation = config.evaluation.model_dump(mode="json")
    evaluation.pop("kl_bound")
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "evaluation": evaluation,
        "sampling": config.sampling.model_dump(mode="json"),
        "references": config.references.model_dump(mode="json"),
        "margin_weights": list(config.training.margin_weights),
        "method": config.training.method,
        "near_duplicate_threshold": config.data.near_duplicate_threshold,
        "judges": [verdict_settings(judge) for judge in config.judges],
    }


def inputs(config: RunConfig, run: RunDirectory) -> dict[str, Path]:
    names = ("prompts", "negatives", "acceptable", "anchors", "selection")
    weights = (
        {"adapter": run.adapter / "adapter_model.safetensors"}
        if config.training.method == "lora"
        else {f"model/{path.name}": path for path in sorted(run.model.glob("*.safetensors"))}
    )
    return {
        **{name: getattr(run, name) for name in names},
        **weights,
        "groups": run.train / TRAINED_GROUPS,
        "normal": run.train / NORMAL_PROMPTS,
        "model": resolve(config.model.name, config.model.revision),
        **template_file(config.model),
        **judge_folders(config.judges),
        **suite_files(config.evaluation.suites),
    }


def outputs(config: RunConfig, run: RunDirectory) -> list[Path]:
    suites = [run.suite_prompts] if config.evaluation.suites else []
    return [run.evaluation, run.evaluation_prompts, run.generations, run.verdicts, *suites]


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Measure and judge, and write evaluation.json, evaluation_prompts.jsonl, generations.jsonl, verdicts.jsonl and,
    with suites, suite_prompts.jsonl.

    Raises:
        InputNotFoundError, DataError: a suite cannot be used.
        RunDirectoryError: the split has no prompt with a rejected answer.
        ConfigError, InputNotFoundError, ModelError, ServerError: a judge cannot be used.
    """
    measured, counts = _measure(config, run)
    # The policies are out of memory by now.
    return {**counts, **_judge(config, run, measured)}


def rescore(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Judge the saved generations again; all else in evaluation.json stays. Returns the counts that are other now.

    Raises:
        ConfigError, InputNotFoundError, ModelError, ServerError: a judge cannot be used.
    """
    return _judge(config, run, read_json(run.evaluation))


def _judge(config: RunConfig, run: RunDirectory, measured: Mapping[str, Any]) -> dict[str, Any]:
    generations, prompts = read_records(run.generations, Generation), read_records(run.prompts, Prompt)
    prompts += read_records(run.suite_prompts, SuitePrompt) if config.evaluation.suites else []
    judgement = judge(generations, prompts, config.judges, run.judge_answers)
    outcomes = outcome_report(judgement, samples=config.evaluation.bootstrap_samples, seed=config.seed)
    write_records(run.verdicts, judgement.rows())
    write_json(run.evaluation, {**measured, "outcomes": _plain(outcomes)})
    return {"judging": judgement.counts()}


def _measure(config: RunConfig, run: RunDirectory) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that needs the policies: the content of evaluation.json but for the outcomes, and the counts."""
    tokenizer = load_tokenizer(config.model)
    full = config.training.method == "full"
    policies = BaseAndTuned.load(config.model, adapter=None if full else run.adapter, full=run.model if full else None)
    with policies.base() as model:
        digests = {"base": policy_digest(model, tokenizer)}
    digests["tuned"] = _tuned_digest(policies, tokenizer)
    cases = read_cases(config, run, tokenizer)
    heldout = [case for case in cases if case.prompt.split != "benign"]
    benign = [case for case in cases if case.prompt.split == "benign"]
    if not heldout:
        raise RunDirectoryError(
            f"{run.path}: the {config.evaluation.split} split has no prompt with a rejected answer; "
            f"raise data.{config.evaluation.split}_fraction or give more rows"
        )
    scores = _Scorer(config, run, tokenizer, policies, digests)
    samples, seed = config.evaluation.bootstrap_samples, config.seed
    alpha, beta = config.training.margin_weights
    asked = _asked(heldout, benign, config)
    chosen, suites = choose_prompts(config, run, tokenizer, asked, run.train / NORMAL_PROMPTS)
    # Apart from each other: the answers to the prompts of the data are the same with and without suites.
    generations = generate_both(policies, digests, tokenizer, asked, config, run.generation_parts)
    if chosen:
        parts = run.generation_parts
        generations += generate_both(policies, digests, tokenizer, chosen, config, parts, "answers to the suites")
    write_records(run.generations, generations)
    kl = _kl_values(policies, generations, tokenizer, {c.prompt.prompt_id: c.prompt_ids for c in benign}, config)
    groups, acceptable = scores.heldout(heldout), scores.acceptable(benign)
    kinds = {prompt.prompt_id: kind_of(prompt) for prompt in (*(case.prompt for case in cases), *chosen)}
    write_records(
        run.evaluation_prompts,
        prompt_rows(groups, acceptable, kl, generations, kinds, alpha=alpha, beta=beta),
    )
    result = {
        "split": config.evaluation.split,
        "policy": {"base_digest": digests["base"], "tuned_digest": digests["tuned"]},
        "heldout": heldout_metrics(groups, alpha=alpha, beta=beta, samples=samples, seed=seed),
        "sources": source_counts(groups),
        "benign": nats_per_token(acceptable, samples=samples, seed=seed),
        "kl": _kl_metrics(kl, samples, seed),
        "generations": outcome_metrics(generations),
        "style_gap": _style_gap(run, samples, seed),
        "suites": [counts.row() for counts in suites],
    }
    return _plain(result), _counts(heldout, benign, generations, suites)


def _tuned_digest(policies: BaseAndTuned, tokenizer: Any) -> str:
    with policies.tuned() as model:
        return policy_digest(model, tokenizer)


class _Scorer:
    """Scores answers under the base, the tuned policy and the references, through the cache."""

    def __init__(
        self, config: RunConfig, run: RunDirectory, tokenizer: Any, policies: BaseAndTuned, digests: Mapping[str, str]
    ):
        self.config, self.run, self.tokenizer, self.policies, self.digests = config, run, tokenizer, policies, digests

    def heldout(self, cases: Sequence[Case]) -> list[HeldoutGroup]:
        base, tuned = self._both(cases)
        minus, plus = (self._reference(role, cases, base) for role in ("negative", "positive"))

        def scored(answers: Answers, before: Mapping, after: Mapping, sources: Sequence[str] = ()) -> list[Scores]:
            return [
                Scores(before[tuple(ids)], after[tuple(ids)], len(ids), source)
                for ids, source in zip(answers, sources or [""] * len(answers), strict=True)
            ]

        return [
            HeldoutGroup(
                prompt_id=case.prompt.prompt_id,
                anchors=scored(case.anchors, before, after),
                negatives=scored(case.negatives, before, after, case.sources["negatives"]),
                acceptable=scored(case.acceptable, before, after, case.sources["acceptable"]),
                ref_anchors=[m[tuple(ids)] for ids in case.anchors],
                ref_negatives=[p[tuple(ids)] for ids in case.negatives],
                end_log_ratios=[
                    (after[ids] - after[ids[:-1]]) - (before[ids] - before[ids[:-1]]) for ids in map(tuple, case.ended)
                ],
            )
            for case, before, after, m, p in zip(cases, base, tuned, minus, plus, strict=True)
        ]

    def acceptable(self, cases: Sequence[Case]) -> list[tuple[str, Scores]]:
        base, tuned = self._both(cases)
        return [
            (case.prompt.prompt_id, Scores(before[tuple(ids)], after[tuple(ids)], len(ids)))
            for case, before, after in zip(cases, base, tuned, strict=True)
            for ids in case.acceptable
        ]

    def _both(self, cases: Sequence[Case]) -> tuple[list[dict], list[dict]]:
        with self.policies.base() as model:
            base = self._score(model, cases, self.digests["base"], "scoring the base model")
        with self.policies.tuned() as model:
            tuned = self._score(model, cases, self.digests["tuned"], "scoring the tuned model")
        return base, tuned

    def _reference(self, role: str, cases: Sequence[Case], base: list[dict]) -> list[dict]:
        name = getattr(self.config.references, role)
        if name == INITIAL:
            return base
        with self.policies.base() as initial:
            model = load_reference(name, self.config.model, initial)
        return self._score(model, cases, policy_digest(model, self.tokenizer), f"scoring the {role} reference")

    def _score(self, model: Any, cases: Sequence[Case], digest: str, description: str) -> list[dict]:
        groups = [case.tokens for case in cases]
        scored = score_groups(
            model,
            self.tokenizer,
            groups,
            cache_root=self.run.reference_cache,
            tokens_per_microbatch=token_budget(self.config.training.tokens_per_microbatch, model.device),
            head_chunk=self.config.training.head_chunk,
            description=description,
            digest=digest,
        )
        return [
            dict(zip(answers, values.logps, strict=True)) for (_, answers), values in zip(groups, scored, strict=True)
        ]


def _asked(heldout: Sequence[Case], benign: Sequence[Case], config: RunConfig) -> list[Prompt]:
    """The prompts that are answered before and after: as many look-alikes as other benign ones, where there are."""
    lookalikes = [case.prompt for case in benign if case.prompt.kind == "lookalike"]
    others = [case.prompt for case in benign if case.prompt.kind != "lookalike"]
    count = config.evaluation.benign_generations
    half = max(count // 2, count - len(others))
    chosen = lookalikes[:half]
    return [
        *[case.prompt for case in heldout][: config.evaluation.heldout_generations],
        *chosen,
        *others[: count - len(chosen)],
    ]


def _kl_values(
    policies: BaseAndTuned,
    generations: Sequence[Generation],
    tokenizer: Any,
    benign_ids: Mapping[str, list[int]],
    config: RunConfig,
) -> dict[str, dict[str, tuple[float, int]]]:
    """KL to base both ways on benign prompts, each on the generations of its first policy: (sum in nats, tokens)."""
    results: dict[str, dict[str, tuple[float, int]]] = {}
    for name, of, p, q in (
        ("base_to_tuned", "base", policies.base, policies.tuned),
        ("tuned_to_base", "tuned", policies.tuned, policies.base),
    ):
        chosen = [g for g in generations if g.model == of and g.prompt_id in benign_ids]
        groups = [(benign_ids[g.prompt_id], [g.token_ids]) for g in chosen]
        values = kl_divergence(
            p,
            q,
            groups,
            tokens_per_microbatch=token_budget(config.training.tokens_per_microbatch, pick_device(config.model.device)),
            head_chunk=config.training.head_chunk,
            description=f"KL {name.replace('_', ' ')}",
        )
        results[name] = {g.prompt_id: value for g, value in zip(chosen, values, strict=True)}
    return results


def _kl_metrics(results: KLValues, samples: int, seed: int) -> dict[str, Estimate]:
    """Means over tokens of both directions, and their sum (Jeffrey)."""
    estimates = {
        name: bootstrap_ratio_mean(
            [v for v, _ in values.values()], [n for _, n in values.values()], samples=samples, seed=seed
        )
        for name, values in results.items()
    }
    return {**estimates, "jeffrey": _jeffrey(results, samples, seed)}


def _jeffrey(results: KLValues, samples: int, seed: int) -> Estimate:
    """Sum of the two mean KLs; the interval from each prompt's contribution to both means (same prompts)."""
    prompts = list(results["base_to_tuned"])
    if not prompts:
        return bootstrap_mean([])
    contributions = np.zeros(len(prompts))
    for values in results.values():
        sums, tokens = (np.array([values[prompt][i] for prompt in prompts], dtype=float) for i in (0, 1))
        # Linearised ratio: mean + influence, so that the average over prompts is the token-weighted mean itself.
        ratio = sums.sum() / tokens.sum()
        contributions += ratio + (sums - ratio * tokens) / tokens.mean()
    return bootstrap_mean(contributions, samples=samples, seed=seed)


def _style_gap(run: RunDirectory, samples: int, seed: int) -> Estimate:
    """Nats/token of the training negatives minus that of the anchors under the references (method.md section 10).

    Paired by prompt. Large = the negatives come from elsewhere, and training may learn their style.
    """
    rows = list(read_jsonl(run.train / TRAINED_GROUPS))
    gaps = [
        -row["negative_ref_logp"] / row["negative_tokens"] + row["anchor_ref_logp"] / row["anchor_tokens"]
        for row in rows
    ]
    return bootstrap_mean(gaps, samples=samples, seed=seed)


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.as_dict()
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _counts(
    heldout: Sequence[Case], benign: Sequence[Case], generations: Sequence[Generation], suites: Sequence[SuiteCounts]
) -> dict[str, Any]:
    in_suites = {"suites": {counts.name: counts.as_counts() for counts in suites}} if suites else {}
    return {
        "heldout": {
            "prompts": len(heldout),
            "negatives": sum(len(case.negatives) for case in heldout),
            "acceptable": sum(len(case.acceptable) for case in heldout),
            "prompts_with_both": sum(bool(case.negatives and case.acceptable) for case in heldout),
            "anchors": sum(len(case.anchors) for case in heldout),
        },
        "benign": {"prompts": len(benign), "acceptable": sum(len(case.acceptable) for case in benign)},
        **in_suites,
        "generations": dict(Counter(generation.model for generation in generations)),
    }
