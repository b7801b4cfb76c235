"""What is evaluated: prompts with the token ids of their answers of each kind, from what earlier stages left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_jsonl, read_records
from naysay.config.run import RunConfig
from naysay.core.prefix import TokenGroup
from naysay.evaluation.likelihood import group_of
from naysay.modeling.chat import encode_prompt, encode_response, end_of_turn_id
from naysay.records import Acceptable, Anchor, Negative, Prompt, Selection

NORMAL_PROMPTS = "normal.jsonl"
Answers = Sequence[Sequence[int]]
Answer = TypeVar("Answer", Negative, Acceptable)


@dataclass(frozen=True)
class Case:
    """A prompt with the token ids of its answers of each kind."""

    prompt: Prompt
    prompt_ids: list[int]
    anchors: Answers
    negatives: Answers
    acceptable: Answers
    end_id: int
    sources: Mapping[str, Sequence[str]]
    """Of the negatives and of the acceptable answers, in their order, where the data say they come from."""

    @property
    def ended(self) -> list[Sequence[int]]:
        """Held-out answers that ended by themselves, each once."""
        if self.prompt.split == "benign":
            return []
        answers = dict.fromkeys(tuple(ids) for kind in (self.anchors, self.negatives, self.acceptable) for ids in kind)
        return [ids for ids in answers if len(ids) > 1 and ids[-1] == self.end_id]

    @property
    def tokens(self) -> TokenGroup:
        """All answers, and those that ended also without their end: the difference is log π(end of turn)."""
        without_end = [ids[:-1] for ids in self.ended]
        return group_of(self.prompt_ids, self.anchors, self.negatives, self.acceptable, without_end)


def read_cases(config: RunConfig, run: RunDirectory, tokenizer: Any) -> list[Case]:
    """The prompts of the evaluated split that have a rejected answer, and benign ones that were not trained on."""
    anchors = {anchor.anchor_id: anchor for anchor in read_records(run.anchors, Anchor)}
    kept = {selection.prompt_id: selection.kept for selection in read_records(run.selection, Selection)}
    records = {
        "negatives": _grouped(read_records(run.negatives, Negative)),
        "acceptable": _grouped(read_records(run.acceptable, Acceptable)),
    }
    trained_on = {row["prompt_id"] for row in read_jsonl(run.train / NORMAL_PROMPTS)}
    cases = []
    for prompt in read_records(run.prompts, Prompt):
        if prompt.split not in {config.evaluation.split, "benign"} or prompt.prompt_id in trained_on:
            continue
        answers = {kind: grouped.get(prompt.prompt_id, []) for kind, grouped in records.items()}
        case = Case(
            prompt=prompt,
            prompt_ids=encode_prompt(tokenizer, prompt.messages),
            anchors=[anchors[anchor_id].token_ids for anchor_id in kept.get(prompt.prompt_id, ())],
            negatives=[_encoded(answer, tokenizer) for answer in answers["negatives"]],
            acceptable=[_encoded(answer, tokenizer) for answer in answers["acceptable"]],
            end_id=end_of_turn_id(tokenizer),
            sources={kind: [answer.provenance for answer in given] for kind, given in answers.items()},
        )
        if prompt.split == "benign" or case.negatives:
            cases.append(case)
    return cases


def _grouped(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.prompt_id, []).append(answer)
    return found


def _encoded(answer: Negative | Acceptable, tokenizer: Any) -> list[int]:
    return encode_response(tokenizer, answer.text, ended=answer.finish == "stop")
