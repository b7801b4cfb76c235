"""The model's own answers, and the training rows that a rule makes of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.rule_prompts import SPLITS, RulePrompt, Split, prompts_of_split
from benchmarks.rules import RULES, rewrite

from naysay.artifacts.digests import digest_json
from naysay.artifacts.store import write_jsonl
from naysay.config.anchors import AnchorsConfig
from naysay.generation.anchors import all_slots, draw_anchors
from naysay.generation.plan import draw, plan_digest
from naysay.generation.sampler import Request, Response, Sampler, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.modeling.chat import decode_response, encode_prompt
from naysay.records import Finish, Negative, Prompt

TEMPERATURE, TOP_K, TOP_P, BATCH, MAX_LENGTH = 0.7, 50, 0.9, 64, 512
TRAINING_ROUND, EVALUATION_ROUND = 0, -1
_COUNTED = ("prompts", "rows", "negatives", "mislabelled", "without_violation", "without_other")
AnchorSource = Literal["unfiltered", "accepted", "mixed", "source", "revise", "reworded"]
NegativeSource = Literal["own", "rewritten", "reworded"]
REWORD = (
    "{request}\n\nHere are notes for the answer:\n{rejected}\n\n"
    "Write the answer in your own words, with the same layout as the notes."
)
"""How the model is asked to say an answer in its own words (`reworded`)."""


@dataclass(frozen=True)
class OwnAnswer:
    """One answer of the model itself. Example: `OwnAnswer("0f3a", 0, (9, 4, 2), "Hi.", "stop")`."""

    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    finish: Finish


@dataclass(frozen=True)
class DataSettings:
    """How rows are made. `labelled` own answers a prompt meet the rule; `k` further ones are the unfiltered anchors."""

    k: int = 4
    labelled: int = 8
    negatives_per_prompt: int = 2
    anchors: AnchorSource = "unfiltered"
    negatives: NegativeSource = "own"
    noise: float = 0.0
    train_prompts: int = 64
    max_new_tokens: int = 56

    @property
    def draws(self) -> int:
        return self.labelled + self.k


def draw_own(
    sampler: Sampler,
    tokenizer: Any,
    prompts: Sequence[RulePrompt],
    draws: int,
    *,
    max_new_tokens: int,
    seed: int,
    round: int,
    folder: Path,
    description: str,
) -> list[list[OwnAnswer]]:
    """`draws` answers to each prompt, without instruction; what is below `folder` already is not drawn again."""
    places = [(prompt, index) for prompt in prompts for index in range(draws)]
    requests = [Request(prompt_ids(tokenizer, p), row_seed(seed, p.prompt_id, i, round)) for p, i in places]

    def to_row(number: int, response: Response) -> dict[str, Any]:
        prompt, index = places[number]
        text = decode_response(tokenizer, response.token_ids)
        row = {"prompt_id": prompt.prompt_id, "index": index, "token_ids": response.token_ids, "text": text}
        return row | {"finish": response.finish}

    rows = _draw(sampler, requests, max_new_tokens, folder, description, to_row)
    answers = [OwnAnswer(**{**row, "token_ids": tuple(row["token_ids"])}) for row in rows]
    return [answers[i * draws : (i + 1) * draws] for i in range(len(prompts))]


def _draw(
    sampler: Sampler,
    requests: Sequence[Request],
    max_new_tokens: int,
    folder: Path,
    description: str,
    to_row: Callable[[int, Response], dict[str, Any]],
) -> list[Any]:
    """Answers to the requests with the benchmark's settings; what is below `folder` already is not drawn again."""
    settings = SamplingSettings(TEMPERATURE, TOP_K, TOP_P, max_new_tokens)
    parts = folder / plan_digest(requests, settings, BATCH)[:16]
    return draw(sampler, requests, settings, batch_size=BATCH, parts=parts, description=description, to_row=to_row)


def prompt_ids(tokenizer: Any, prompt: RulePrompt) -> tuple[int, ...]:
    """The bare prompt as token ids."""
    return tuple(encode_prompt(tokenizer, [{"role": "user", "content": prompt.text}]))


def split_by_rule(rule: str, answers: Sequence[OwnAnswer]) -> tuple[list[OwnAnswer], list[OwnAnswer]]:
    """(violating, acceptable), each in the order of the answers, equal ones once and empty ones never."""
    unique = list({answer.token_ids: answer for answer in answers if answer.text.strip()}.values())
    verdicts = [RULES[rule].violates(answer.text) for answer in unique]
    return (
        [answer for answer, bad in zip(unique, verdicts, strict=True) if bad],
        [answer for answer, bad in zip(unique, verdicts, strict=True) if not bad],
    )


def training_rows(
    rule: str,
    prompts: Sequence[RulePrompt],
    answers: Sequence[Sequence[OwnAnswer]],
    settings: DataSettings,
    *,
    seed: int,
    with_chosen: bool = False,
    revised: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows for D2OTrainer and counts: prompts = rows + skipped. `revised` are the anchors of `anchors: revise`.

    Of a prompt's first `labelled` answers the violating ones are negatives. With `noise`, each negative is replaced
    with that probability by an answer that keeps the rule. `chosen` (with_chosen) is an acceptable labelled answer.
    """
    counts: dict[str, int] = dict.fromkeys(
        ("prompts", "rows", "negatives", "mislabelled", "without_violation", "without_other"), 0
    )
    rows = []
    for prompt, mine in zip(prompts, answers, strict=True):
        counts["prompts"] += 1
        violating, acceptable = split_by_rule(rule, mine[: settings.labelled])
        rejected, mislabelled = _negatives(violating, acceptable, settings, seed)
        rejected_as = [_as_negative(rule, answer, settings.negatives) for answer in rejected]
        anchors = (
            _anchors(rule, mine, rejected, settings) if revised is None else list(map(list, revised[prompt.prompt_id]))
        )
        chosen = [answer for answer in acceptable if answer not in rejected][:1]
        row = {"prompt": prompt.text, "prompt_id": prompt.prompt_id, "anchors": anchors}
        row["rejected"] = [answer for answer in rejected_as if answer is not None]
        if with_chosen:
            row["chosen"] = [list(answer.token_ids) for answer in chosen]
        if not row["rejected"]:
            counts["without_violation"] += 1
        elif not anchors or (with_chosen and not chosen):
            counts["without_other"] += 1
        else:
            rows.append(row)
            counts["rows"] += 1
            counts["negatives"] += len(row["rejected"])
            counts["mislabelled"] += mislabelled
    return rows, counts


def _negatives(
    violating: Sequence[OwnAnswer], acceptable: Sequence[OwnAnswer], settings: DataSettings, seed: int
) -> tuple[list[OwnAnswer], int]:
    """The rejected answers of a prompt, and how many of them keep the rule (injected noise)."""
    spare, result, wrong = list(acceptable), [], 0
    for answer in violating[: settings.negatives_per_prompt]:
        if spare and _uniform(seed, answer) < settings.noise:
            result.append(spare.pop(0))
            wrong += 1
        else:
            result.append(answer)
    return result, wrong


def _uniform(seed: int, answer: OwnAnswer) -> float:
    digest = hashlib.sha256(f"noise/{seed}/{answer.prompt_id}/{answer.index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _as_negative(rule: str, answer: OwnAnswer, source: NegativeSource) -> Any:
    return list(answer.token_ids) if source == "own" else rewritten(rule, answer)


def rewritten(rule: str, answer: OwnAnswer) -> dict[str, str] | None:
    """The answer in another style, with the same verdict; None where style and verdict cannot be told apart."""
    text = rewrite(answer.text)
    changed = text != answer.text and RULES[rule].violates(text) == RULES[rule].violates(answer.text)
    return {"text": text, "finish": answer.finish} if changed else None


def _anchors(rule: str, mine: Sequence[OwnAnswer], rejected: Sequence[OwnAnswer], settings: DataSettings) -> list[Any]:
    """K anchors: unfiltered own answers; own answers that keep the rule; acceptable answers in the style of the
    negatives (`source`); or half of the first and half of the last (`mixed`)."""
    further, used = mine[settings.labelled :], {answer.token_ids for answer in rejected}
    unfiltered = [answer for answer in further if answer.text.strip() and answer.token_ids not in used]
    good = [a for a in split_by_rule(rule, [*further, *mine[: settings.labelled]])[1] if a.token_ids not in used]
    if settings.anchors == "unfiltered":
        return [list(answer.token_ids) for answer in unfiltered]
    if settings.anchors == "accepted":
        return [list(answer.token_ids) for answer in good[: settings.k]]
    styled = [text for text in (rewritten(rule, answer) for answer in good) if text is not None]
    if settings.anchors == "source":
        return list(styled[: settings.k])
    half = settings.k // 2
    return [*[list(answer.token_ids) for answer in unfiltered[: settings.k - half]], *styled[:half]]


def revised_answers(
    sampler: Sampler, tokenizer: Any, rows: Sequence[Mapping[str, Any]], settings: DataSettings, seed: int, folder: Path
) -> dict[str, list[tuple[int, ...]]]:
    """K answers to each prompt of `rows` by `anchors.mode: revise`: the model is shown a rejected answer and asked to
    write it anew without what is wrong. It is not told what that is."""
    prompts, shown = [], {}
    for row in rows:
        name = row["prompt_id"]
        prompts.append(Prompt(name, ({"role": "user", "content": row["prompt"]},), "known_rule", "train"))
        texts = [_text_of(tokenizer, answer) for answer in row["rejected"]]
        shown[name] = [Negative(f"n-{i}", name, text) for i, text in enumerate(texts)]
    config = AnchorsConfig(
        k=settings.k,
        mode="revise",
        max_new_tokens=settings.max_new_tokens,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        top_p=TOP_P,
    )
    anchors, _ = draw_anchors(
        sampler,
        tokenizer,
        all_slots(prompts, settings.k),
        config,
        run_seed=seed,
        batch_size=BATCH,
        parts=folder / digest_json([[row["prompt_id"], row["rejected"]] for row in rows])[:16],
        max_length=MAX_LENGTH,
        rejected=shown,
    )
    found: dict[str, list[tuple[int, ...]]] = {prompt.prompt_id: [] for prompt in prompts}
    for anchor in anchors:
        if anchor.text.strip():
            found[anchor.prompt_id].append(anchor.token_ids)
    return found


def reworded_answers(
    sampler: Sampler,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    column: Literal["rejected", "anchors"],
    settings: DataSettings,
    seed: int,
    folder: Path,
) -> list[list[list[int]]]:
    """The answers in a column of `rows` in the model's own words: what it writes when it is shown them, one by one. It
    is not told the rule, so what was wrong with an answer may be lost."""
    places = [
        (row["prompt_id"], index, REWORD.format(request=row["prompt"], rejected=_text_of(tokenizer, answer)))
        for row in rows
        for index, answer in enumerate(row[column])
    ]
    requests = [
        Request(
            tuple(encode_prompt(tokenizer, [{"role": "user", "content": asked}])),
            row_seed(seed, f"{prompt_id}/{column} reworded", index, TRAINING_ROUND),
        )
        for prompt_id, index, asked in places
    ]
    drawn = _draw(
        sampler,
        requests,
        settings.max_new_tokens,
        folder,
        f"{column} in own words",
        lambda number, response: {"prompt_id": places[number][0], "ids": response.token_ids},
    )
    found: dict[str, list[list[int]]] = {row["prompt_id"]: [] for row in rows}
    for row in drawn:
        if decode_response(tokenizer, row["ids"]).strip():
            found[row["prompt_id"]].append(list(row["ids"]))
    return [found[row["prompt_id"]] for row in rows]


def _text_of(tokenizer: Any, answer: Any) -> str:
    return answer["text"] if isinstance(answer, dict) else decode_response(tokenizer, answer)


def heldout_pairs(
    rule: str, answers: Sequence[Sequence[OwnAnswer]], source: NegativeSource
) -> list[tuple[str, Any, Any]]:
    """(prompt id, acceptable, violating) in the style of the negatives, for each prompt whose answers have both."""
    result = []
    for mine in answers:
        violating, acceptable = ([_as_negative(rule, a, source) for a in kind] for kind in split_by_rule(rule, mine))
        bad, good = ([text for text in kind if text is not None] for kind in (violating, acceptable))
        if bad and good:
            result.append((mine[0].prompt_id, good[0], bad[0]))
    return result


def export_rows(rule: str, answers_of: Mapping[Split, Sequence[Sequence[OwnAnswer]]], path: Path) -> dict[str, int]:
    """Write rejected.jsonl for `naysay compare`: a line for each answer to a prompt that has a violating one, with
    `label` (false = violates), how the answer ended and the split of the prompt. `answers_of` may end before a split's
    prompts do. Returns rejected answers by split."""
    lines: list[dict[str, Any]] = []
    counts: dict[str, int] = {str(split): 0 for split in SPLITS}
    for split in SPLITS:
        for prompt, mine in zip(prompts_of_split(rule, split), answers_of[split], strict=False):
            violating, acceptable = split_by_rule(rule, mine)
            for answer in (*violating, *(acceptable if violating else ())):
                line = {"prompt": prompt.text, "completion": answer.text, "label": answer not in violating}
                lines.append(line | {"finish": answer.finish, "split": split})
            counts[split] += len(violating)
    write_jsonl(path, lines)
    return counts
