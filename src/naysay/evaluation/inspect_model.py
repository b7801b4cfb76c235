"""A policy as a model of Inspect: what a task asks for is drawn by our sampler, several conversations at a time.

Inspect asks for one answer at a time, from many samples at once; what waits is drawn as one batch.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo  # pyright: ignore[reportMissingImports]

from naysay.artifacts.digests import digest_json
from naysay.errors import ModelError
from naysay.generation.sampler import Request, Response, Sampler, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.modeling.chat import decode_response, encode_prompt
from naysay.records import Message

_INSPECT_ROUND = -2
"""Keeps the seeds apart from those of anchors and of the evaluation."""
_GATHERING_SECONDS = 0.02
_UNSUPPORTED = (
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "prompt_logprobs",
    "response_schema",
)


@dataclass(frozen=True, slots=True)
class InspectedPolicy:
    """What answers: a sampler with its tokenizer, how it draws where a task does not say, and the run's seed."""

    sampler: Sampler
    tokenizer: Any
    settings: SamplingSettings
    seed: int


@dataclass(slots=True)
class _Waiting:
    requests: list[Request]
    settings: SamplingSettings
    responses: list[Response] = field(default_factory=list)
    error: Exception | None = None


class PolicyAPI(ModelAPI):
    """Inspect's view of a policy.

    A task may set `temperature` (0 = the likeliest token), `top_k`, `top_p`, `max_tokens`, `stop_seqs`, `num_choices`,
    `seed` and `system_message`; tools, images and other settings that change the answer are refused. The same
    conversation asked again (epochs) has the next seed, so that results do not depend on the order of the samples.
    """

    def __init__(self, policy: InspectedPolicy, model_name: str, config: GenerateConfig, **arguments: Any):
        super().__init__(model_name=model_name, config=config, **arguments)
        self.policy = policy
        self._asked: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []
        self._lock = anyio.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One answer (or `num_choices` of them) to a conversation.

        Raises:
            ModelError: the task needs what a plain chat model does not do, or the answer might not fit the context.
        """
        _refuse_unsupported(tools, config)
        messages = [_message(message) for message in input]
        settings = sampling_settings(self.policy.settings, config)
        item = _Waiting(self._requests(messages, settings, config), settings)
        self._waiting.append(item)
        async with self._lock:  # whoever comes first draws for all who wait by then
            if not item.responses and item.error is None:
                await anyio.sleep(_GATHERING_SECONDS)
                await anyio.to_thread.run_sync(self._draw, self._take(settings))
        if item.error is not None:
            raise item.error
        return self._output(item, config.stop_seqs or ())

    def max_connections(self) -> int:
        """As many samples at once as make a good batch."""
        return 32

    def max_tokens(self) -> int:
        """Of an answer, where the task does not say."""
        return self.policy.settings.max_new_tokens

    async def count_text_tokens(self, text: str) -> int:
        """Exact, by the policy's own tokenizer (Inspect's default would download one)."""
        return len(self.policy.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _requests(
        self, messages: Sequence[Message], settings: SamplingSettings, config: GenerateConfig
    ) -> list[Request]:
        ids = tuple(encode_prompt(self.policy.tokenizer, messages))
        conversation = digest_json([ids, settings.temperature, settings.top_k, settings.top_p])
        seed = self.policy.seed if config.seed is None else config.seed
        requests = []
        for _ in range(config.num_choices or 1):
            requests.append(Request(ids, row_seed(seed, conversation, self._asked[conversation], _INSPECT_ROUND)))
            self._asked[conversation] += 1
        return requests

    def _take(self, settings: SamplingSettings) -> list[_Waiting]:
        """Those who wait for answers that are drawn alike."""
        taken = [item for item in self._waiting if item.settings == settings]
        self._waiting = [item for item in self._waiting if item.settings != settings]
        return taken

    def _draw(self, items: Sequence[_Waiting]) -> None:
        """In a thread, so that Inspect's clock and display go on."""
        requests = [request for item in items for request in item.requests]
        try:
            responses = iter(self.policy.sampler.sample(requests, items[0].settings))
        except ModelError as error:
            for item in items:
                item.error = error
            return
        for item in items:
            item.responses = [next(responses) for _ in item.requests]

    def _output(self, item: _Waiting, stops: Sequence[str]) -> ModelOutput:
        choices = [self._choice(response, stops) for response in item.responses]
        read, written = len(item.requests[0].prompt_ids), sum(len(response.token_ids) for response in item.responses)
        usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return ModelOutput(model=self.model_name, choices=choices, usage=usage)

    def _choice(self, response: Response, stops: Sequence[str]) -> ChatCompletionChoice:
        text, finish = decode_response(self.policy.tokenizer, response.token_ids), response.finish
        cut = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            text, finish = text[:cut], "stop"
        message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        return ChatCompletionChoice(message=message, stop_reason="stop" if finish == "stop" else "max_tokens")


def sampling_settings(default: SamplingSettings, config: GenerateConfig) -> SamplingSettings:
    """The distribution that a task asks for: the run's, with what the task sets in its place."""
    given = {
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "max_new_tokens": config.max_tokens,
    }
    settings = replace(default, **{name: value for name, value in given.items() if value is not None})
    return replace(settings, temperature=1.0, top_k=1) if settings.temperature == 0.0 else settings


def _refuse_unsupported(tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
    if tools:
        raise ModelError(
            f"the task gives the model tools ({', '.join(tool.name for tool in tools[:3])}), which naysay's models do "
            "not call; use a task without tools"
        )
    for name in _UNSUPPORTED:
        if getattr(config, name):
            raise ModelError(f"the task sets {name}, which naysay's models do not do; leave it out of its config")


def _message(message: ChatMessage) -> Message:
    if message.role == "tool":
        raise ModelError("the task has tool messages, which naysay's models do not read; use a task without tools")
    kinds = [] if isinstance(message.content, str) else [part.type for part in message.content]
    if other := next((kind for kind in kinds if kind != "text"), None):
        raise ModelError(f"the task has a message with content of type {other}; naysay's models read text only")
    return {"role": message.role, "content": message.text}
