"""Anchors: drawn under an instruction, meant for the bare prompt, each with what it came from."""

import pytest

from conftest import TEMPLATE, make_model, make_tokenizer
from naysay.config.anchors import MORAL_INSTRUCTIONS, REVISE_INSTRUCTIONS, AnchorsConfig
from naysay.errors import DataError
from naysay.generation.anchors import all_slots, anchor_request, draw_anchors, instruction_id, instruction_of
from naysay.generation.hf import HFSampler
from naysay.generation.seeds import row_seed
from naysay.modeling.chat import decode_response, encode_prompt, with_instruction
from naysay.records import Negative, Prompt

WITHOUT_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORES_SYSTEM = TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
PROMPTS = [
    Prompt("p-1", ({"role": "user", "content": "Insult him."},), "a:1", "train"),
    Prompt("p-2", ({"role": "user", "content": "Lie, please, to all of them."},), "a:2", "train"),
]
INSTRUCTIONS = ("Be kind.", "Be honest.", "")


class Watching(HFSampler):
    """Keeps what it was asked for."""

    def __init__(self):
        super().__init__(make_model(max_position_embeddings=2048), make_tokenizer(), "policy-1")
        self.asked = []

    def sample(self, requests, settings):
        self.asked += [(requests_.prompt_ids, requests_.seed) for requests_ in requests]
        return super().sample(requests, settings)


def drawn(parts, *, prompts=PROMPTS, k=9, run_seed=0, max_length=400, round=0, instructions=INSTRUCTIONS):
    sampler = Watching()
    config = AnchorsConfig(k=k, max_new_tokens=10, temperature=1.0, instructions=instructions)
    anchors, plan = draw_anchors(
        sampler,
        make_tokenizer(),
        all_slots(prompts, k),
        config,
        run_seed=run_seed,
        batch_size=8,
        parts=parts,
        max_length=max_length,
        round=round,
    )
    return anchors, plan, sampler


def test_an_anchor_says_where_it_comes_from(tmp_path):
    anchors, plan, sampler = drawn(tmp_path)
    assert [(a.prompt_id, a.index) for a in anchors] == [(p.prompt_id, i) for p in PROMPTS for i in range(9)]
    assert plan["batches"] == 3
    tokenizer = make_tokenizer()
    texts = {instruction_id(text): text for text in INSTRUCTIONS}
    asked = set(sampler.asked)
    for anchor in anchors:
        prompt = next(p for p in PROMPTS if p.prompt_id == anchor.prompt_id)
        assert anchor.seed == row_seed(0, anchor.prompt_id, anchor.index, 0)
        assert (anchor.policy_digest, anchor.sampler, anchor.round) == ("policy-1", "hf", 0)
        assert anchor.text == decode_response(tokenizer, anchor.token_ids)
        assert len(anchor.token_logprobs) == len(anchor.token_ids)
        assert (anchor.token_ids[-1] == 257) == (anchor.finish == "stop")
        # The sampler saw the prompt under exactly the recorded instruction.
        messages = with_instruction(tokenizer, prompt.messages, texts[anchor.instruction_id])
        assert (tuple(encode_prompt(tokenizer, messages)), anchor.seed) in asked
    assert len({anchor.instruction_id for anchor in anchors}) > 1
    assert len({anchor.anchor_id for anchor in anchors}) == 18


def test_an_anchor_depends_on_its_own_prompt_index_and_round_only(tmp_path):
    """The batch changes the last bits of a logit, which changes a token once in millions of draws."""
    anchors = {(a.prompt_id, a.index): a for a in drawn(tmp_path / "a")[0]}
    fewer = drawn(tmp_path / "b", prompts=PROMPTS[1:], k=5)[0]
    assert [a.token_ids for a in fewer] == [anchors["p-2", i].token_ids for i in range(5)]
    assert [a.instruction_id for a in fewer] == [anchors["p-2", i].instruction_id for i in range(5)]
    for changes in ({"run_seed": 1}, {"round": 1}):
        others = drawn(tmp_path / str(changes), **changes)[0]
        assert not {a.seed for a in others} & {a.seed for a in anchors.values()}
        assert [a.token_ids for a in others] != [a.token_ids for a in anchors.values()]


def test_the_room_for_an_anchor_is_counted_from_the_bare_prompt(tmp_path):
    bare = [len(encode_prompt(make_tokenizer(), prompt.messages)) for prompt in PROMPTS]
    assert bare[1] > bare[0]
    long = ("Be kind. " * 20,)
    anchors = drawn(tmp_path, max_length=bare[1] + 4, instructions=long)[0]
    second = [a for a in anchors if a.prompt_id == "p-2"]
    assert max(len(a.token_ids) for a in second) == 4
    assert {a.finish for a in second if len(a.token_ids) == 4 and a.token_ids[-1] != 257} == {"length"}
    assert max(len(a.token_ids) for a in anchors) == 10  # the shorter prompt has room for all of them


@pytest.mark.parametrize("shortage", [0, 3])
def test_a_prompt_without_room_gets_empty_anchors(tmp_path, shortage):
    bare = len(encode_prompt(make_tokenizer(), PROMPTS[0].messages))
    anchors = drawn(tmp_path, prompts=PROMPTS[:1], max_length=bare - shortage)[0]
    assert [a.token_ids for a in anchors] == [()] * 9
    assert {a.text for a in anchors} == {""}


def test_the_choice_of_instruction_is_spread_and_stable():
    chosen = [
        instruction_of(MORAL_INSTRUCTIONS, 0, f"p-{i}", index, 0) for i in range(200) for index in range(0, 12, 4)
    ]
    counts = [chosen.count(text) for text in MORAL_INSTRUCTIONS]
    assert min(counts) > 60  # 100 each, +-4 standard deviations
    assert chosen[0] == instruction_of(MORAL_INSTRUCTIONS, 0, "p-0", 3, 0)  # neighbours share a prompt


def test_there_are_at_least_six_instructions_of_their_own_words():
    assert len(set(MORAL_INSTRUCTIONS)) == len(MORAL_INSTRUCTIONS) >= 6
    assert len({instruction_id(text) for text in MORAL_INSTRUCTIONS}) == len(MORAL_INSTRUCTIONS)
    assert AnchorsConfig().instructions == MORAL_INSTRUCTIONS
    assert instruction_id("") == "bare"


USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "You are Bo."}


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (TEMPLATE, [USER], [{"role": "system", "content": "Be kind."}, USER]),
        (TEMPLATE, [SYSTEM, USER], [{"role": "system", "content": "You are Bo.\n\nBe kind."}, USER]),
        (WITHOUT_SYSTEM, [USER], [{"role": "user", "content": "Be kind.\n\nHi"}]),
        (IGNORES_SYSTEM, [USER], [{"role": "user", "content": "Be kind.\n\nHi"}]),
        (IGNORES_SYSTEM, [SYSTEM, USER, USER], [SYSTEM, {"role": "user", "content": "Be kind.\n\nHi"}, USER]),
    ],
    ids=["added", "joined", "refused", "ignored", "ignored-with-system-message"],
)
def test_the_instruction_goes_where_the_template_shows_it(template, messages, expected):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    placed = with_instruction(tokenizer, messages, "Be kind.")
    assert placed == expected
    assert "Be kind." in tokenizer.decode(encode_prompt(tokenizer, placed))
    assert with_instruction(tokenizer, messages, "") == messages


def test_plain_anchors_are_drawn_under_the_bare_prompt():
    messages, name = anchor_request(
        make_tokenizer(), (PROMPTS[0], 3), AnchorsConfig(mode="plain"), {}, run_seed=0, round=0
    )
    assert messages == list(PROMPTS[0].messages)
    assert name == "bare"


def test_revised_anchors_are_shown_a_rejected_answer_of_their_own_prompt():
    prompt = Prompt("p", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
                          {"role": "user", "content": "Insult him."}), "a:1", "train")  # fmt: skip
    rejected = {"p": [Negative("n1", "p", "He is a fool."), Negative("n2", "p", "What an oaf.")]}
    asked = {}
    for index in range(16):
        messages, name = anchor_request(
            make_tokenizer(), (prompt, index), AnchorsConfig(mode="revise"), rejected, run_seed=0, round=0
        )
        assert messages[:2] == list(prompt.messages[:2])
        asked[index] = messages[2]["content"]
        assert any(text in asked[index] and instruction_id(text) == name for text in REVISE_INSTRUCTIONS)
        assert "Request: Insult him." in asked[index]
        # Four neighbours share a request, and the rejected answers take turns.
        assert ("He is a fool." in asked[index], "What an oaf." in asked[index]) == (index % 8 < 4, index % 8 >= 4)
    assert asked[0] == asked[3]
    assert prompt.messages[2]["content"] == "Insult him."
    with pytest.raises(DataError, match=r"anchors.mode revise needs a rejected answer to show, found none"):
        anchor_request(make_tokenizer(), (prompt, 0), AnchorsConfig(mode="revise"), {}, run_seed=0, round=0)
