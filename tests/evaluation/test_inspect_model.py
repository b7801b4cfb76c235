"""A policy as a model of Inspect, with a sampler that writes down what it was asked."""

import pytest

pytest.importorskip("inspect_ai", reason="comes with the extra naysay[inspect]")

import anyio
from inspect_ai.model import ChatMessageSystem, ChatMessageTool, ChatMessageUser, ContentImage, GenerateConfig
from inspect_ai.tool import ToolInfo

from naysay.errors import ModelError
from naysay.evaluation.inspect_model import InspectedPolicy, PolicyAPI
from naysay.generation.sampler import Response, SamplingSettings
from naysay.modeling.chat import encode_prompt, encode_response

DEFAULT = SamplingSettings(temperature=0.7, top_k=50, top_p=0.9, max_new_tokens=16)


class Sampler:
    """Answers each prompt with its number in the order of asking."""

    name, policy_digest = "fake", "0" * 32

    def __init__(self, tokenizer, *, text="no {}. END more", error=None):
        self.tokenizer, self.text, self.error, self.batches = tokenizer, text, error, []

    def sample(self, requests, settings):
        if self.error is not None:
            raise self.error
        self.batches.append((requests, settings))
        texts = [self.text.format(len(self.batches) + i) for i in range(len(requests))]
        return [Response(tuple(encode_response(self.tokenizer, text, ended=True)), (), "stop") for text in texts]


def ask(sampler: Sampler, *questions: str, tools=(), config=None, messages=None):
    """The outputs for these questions, asked at the same time, in their order."""
    api = PolicyAPI(InspectedPolicy(sampler, sampler.tokenizer, DEFAULT, seed=3), "tuned", GenerateConfig())
    outputs = {}

    async def one(i, asked):
        outputs[i] = await api.generate(asked, list(tools), "auto", config or GenerateConfig())

    async def all_at_once():
        asked = messages or [[ChatMessageUser(content=question)] for question in questions]
        if len(asked) == 1:
            await one(0, asked[0])
            return
        async with anyio.create_task_group() as group:
            for i, item in enumerate(asked):
                group.start_soon(one, i, item)

    anyio.run(all_at_once)
    return [outputs[i] for i in sorted(outputs)]


def test_what_waits_at_the_same_time_is_one_batch(tokenizer):
    sampler = Sampler(tokenizer)
    outputs = ask(sampler, "a", "b", "c")
    ((requests, settings),) = sampler.batches
    assert settings == DEFAULT
    asked = [tuple(encode_prompt(tokenizer, [{"role": "user", "content": text}])) for text in "abc"]
    assert [request.prompt_ids for request in requests] == asked
    assert [output.completion for output in outputs] == [f"no {i}. END more" for i in (1, 2, 3)]
    assert [output.stop_reason for output in outputs] == ["stop"] * 3
    usage = outputs[0].usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (len(asked[0]), len("no 1. END more") + 1)


def test_the_seed_depends_on_the_conversation_and_how_often_it_was_asked(tokenizer):
    def seeds(*questions):
        sampler = Sampler(tokenizer)
        ask(sampler, *questions)
        return [request.seed for requests, _ in sampler.batches for request in requests]

    first, other, again = seeds("a", "b", "a")
    assert len({first, other, again}) == 3
    assert seeds("b", "a", "a") == [other, first, again]


def test_a_task_sets_how_is_drawn(tokenizer):
    sampler = Sampler(tokenizer)
    config = GenerateConfig(temperature=0.0, max_tokens=5, num_choices=2, stop_seqs=["END"])
    (output,) = ask(sampler, "a", config=config)
    ((requests, settings),) = sampler.batches
    assert settings == SamplingSettings(temperature=1.0, top_k=1, top_p=0.9, max_new_tokens=5)
    assert len(requests) == 2
    assert requests[0].seed != requests[1].seed
    assert [choice.message.text for choice in output.choices] == ["no 1. ", "no 2. "]
    ask(sampler, "a", config=GenerateConfig(temperature=0.3, top_p=1.0, top_k=0))
    assert sampler.batches[-1][1] == SamplingSettings(0.3, 0, 1.0, 16)


def test_the_system_message_is_part_of_the_prompt(tokenizer):
    sampler = Sampler(tokenizer)
    ask(sampler, messages=[[ChatMessageSystem(content="Be kind."), ChatMessageUser(content="a")]])
    expected = encode_prompt(tokenizer, [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}])
    assert list(sampler.batches[0][0][0].prompt_ids) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tools": [ToolInfo(name="bash", description="a shell")]}, "tools (bash)"),
        ({"config": GenerateConfig(logprobs=True)}, "sets logprobs"),
        ({"config": GenerateConfig(frequency_penalty=0.5)}, "sets frequency_penalty"),
        ({"messages": [[ChatMessageTool(content="x")]]}, "tool messages"),
        ({"messages": [[ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])]]}, "type image"),
    ],
)
def test_what_would_be_ignored_is_refused(tokenizer, changes, said):
    sampler = Sampler(tokenizer)
    with pytest.raises(ModelError) as error:
        ask(sampler, "a", **changes)
    assert said in str(error.value)
    assert not sampler.batches


def test_a_sampler_that_fails_fails_everyone_who_waits(tokenizer):
    sampler = Sampler(tokenizer, error=ModelError("the context is too short"))
    with pytest.raises(ModelError, match="context is too short"):
        ask(sampler, "a")
