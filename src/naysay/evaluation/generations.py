"""Generations before and after training, on the same prompts with the same seeds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from naysay.config.run import RunConfig
from naysay.generation.hf import HFSampler
from naysay.generation.plan import draw, plan_digest
from naysay.generation.sampler import Request, Response, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.judging.heuristics import classify
from naysay.modeling.adapters import BaseAndTuned
from naysay.modeling.chat import decode_response, encode_prompt
from naysay.records import Generation, Prompt, SuitePrompt
from naysay.statistics.estimate import Estimate
from naysay.statistics.intervals import wilson
from naysay.statistics.paired import paired_proportion_change

OUTCOMES = ("answer", "refusal", "degenerate")
EVALUATION_ROUND = -1


def kind_of(prompt: Prompt) -> str:
    """`heldout` (also of the dev split), `benign` or `lookalike`; of a suite's prompt also `safety`."""
    if isinstance(prompt, SuitePrompt):
        return prompt.kind
    return "lookalike" if prompt.kind == "lookalike" else "benign" if prompt.split == "benign" else "heldout"


def generate_both(
    policies: BaseAndTuned,
    digests: dict[str, str],
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: RunConfig,
    parts: Path,
    what: str = "answers",
) -> list[Generation]:
    """One answer of each policy to each prompt, resumable below `parts`; `what` they are is said by the progress bar.

    Answers depend, in their last bits, on the prompts that are asked in the same call.
    """
    evaluation = config.evaluation
    settings = SamplingSettings(evaluation.temperature, evaluation.top_k, evaluation.top_p, evaluation.max_new_tokens)
    seeds = [row_seed(config.seed, prompt.prompt_id, 0, EVALUATION_ROUND) for prompt in prompts]
    requests = [
        Request(tuple(encode_prompt(tokenizer, prompt.messages)), seed)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    # In the name of the folder, so that it means the same in every run that has it.
    plan = plan_digest(requests, settings, config.sampling.batch_size)
    result = []
    for name, opened in (("base", policies.base), ("tuned", policies.tuned)):

        def to_row(i: int, response: Response, name: str = name) -> dict[str, Any]:
            return asdict(_generation(prompts[i], name, digests[name], seeds[i], response, tokenizer))

        with opened() as model:
            rows = draw(
                HFSampler(model, tokenizer, digests[name]),
                requests,
                settings,
                batch_size=config.sampling.batch_size,
                parts=parts / f"{name}-{digests[name][:12]}-{plan[:12]}",
                description=f"{what} of the {name} model",
                to_row=to_row,
            )
        result += [Generation(**{**row, "token_ids": tuple(row["token_ids"])}) for row in rows]
    return result


def _generation(prompt: Prompt, model: str, digest: str, seed: int, response: Response, tokenizer: Any) -> Generation:
    text = decode_response(tokenizer, response.token_ids)
    return Generation(
        prompt_id=prompt.prompt_id,
        prompt=prompt.messages[-1]["content"],
        kind=kind_of(prompt),
        model=model,
        model_digest=digest,
        seed=seed,
        token_ids=response.token_ids,
        text=text,
        finish=response.finish,
        outcome=classify(text, response.finish).label,
        suite=prompt.suite if isinstance(prompt, SuitePrompt) else "",
        category=prompt.category if isinstance(prompt, SuitePrompt) else "",
    )


def outcome_metrics(generations: Sequence[Generation]) -> dict[str, Any]:
    """Shares of answer, refusal and degenerate before and after with Wilson intervals, and the paired change; overall
    and by kind of prompt."""
    kinds = sorted({generation.kind for generation in generations})
    return {
        **_outcomes(generations),
        "by_kind": {kind: _outcomes([g for g in generations if g.kind == kind]) for kind in kinds},
    }


def _outcomes(generations: Sequence[Generation]) -> dict[str, dict[str, Estimate]]:
    base, tuned = (
        sorted((g for g in generations if g.model == model), key=lambda g: g.prompt_id) for model in ("base", "tuned")
    )
    shares = {
        name: {outcome: wilson(sum(g.outcome == outcome for g in rows), len(rows)) for outcome in OUTCOMES}
        for name, rows in (("base", base), ("tuned", tuned))
    }
    change = {
        outcome: paired_proportion_change([g.outcome == outcome for g in base], [g.outcome == outcome for g in tuned])
        for outcome in OUTCOMES
    }
    return {**shares, "change": change}
