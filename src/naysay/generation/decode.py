"""The decoding loop: prompts are computed once, finished rows make room for waiting ones, nothing is padded.

Rows that share a prompt share its keys and values (`shared_attention`). The rows being drawn always stand at the first
places: the last ones move to where others ended, so that a step computes no row for nothing.

Legend: A rows being drawn, V vocabulary.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from naysay.generation import shared_attention
from naysay.generation.shared_attention import Prefill, Step, Store
from naysay.modeling.forward import bind_parts, causal_lm, token_budget

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 128
"""Rows computed together on a CPU. More cost memory for their keys and values; fewer read the weights more often for
each token (benchmarks/rows_at_a_time.py)."""
_ROWS_ON_A_GPU = 2048
"""Rows computed together at most on a GPU, where a step takes as long for few of them as for many."""
_SHARE_OF_A_GPU = 1 / 8
"""The share of a GPU's whole memory that the rows' keys and values may take, or fewer rows are computed together. What
is free at the time does not count: the same rows are to be computed together again."""
_PROMPT_TOKENS = 2**15
"""Prompt tokens, the longest prompt's for each, whose keys and values are kept at a time: where every row has a long
prompt of its own, fewer rows are computed together."""
_REFILL = 8
"""Waiting rows come in when an eighth of the places is free, so that several prompts are computed together."""
_CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_CHECK_TOLERANCE_HALF = 0.25
_reasons: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


@dataclass
class Row:
    """One answer as far as it is drawn: the number of its request, its prompt, its tokens, their log-probs (nats)."""

    request: int
    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


Choose = Callable[[Tensor, Sequence[Row]], tuple[Tensor, Tensor]]
"""From logits [A, V] and their rows: the next token [A] of each and its log-prob [A]."""
Ended = Callable[[Row], bool]
"""Whether a row that was given a token ends with it."""


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    choose: Choose,
    ended: Ended,
    *,
    length: int,
    rows_at_a_time: int | None = None,
) -> list[Row]:
    """One row for each prompt, in their order, that has `ended` with at most `length` tokens; `rows_at_a_time` are
    computed together (None: what suits the device).

    `why_not` must have found nothing against the model. What is computed together, and so the last bits of the logits,
    is a function of the arguments, and on a GPU of its memory.
    """
    batch = _Batch(model, prompts, length=length, size=rows_at_a_time or _rows_that_suit(model, length))
    rows = sorted(batch.waiting, key=lambda row: row.request)
    with _attention_of(causal_lm(model)):
        while batch.waiting or batch.rows:
            batch.refill()
            tokens, logprobs = choose(batch.logits(), batch.rows)
            for row, token, logprob in zip(batch.rows, tokens.tolist(), logprobs.tolist(), strict=True):
                row.tokens.append(token)
                row.logprobs.append(logprob)
            batch.retire([ended(row) for row in batch.rows])
    return rows


def _rows_that_suit(model: Any, length: int) -> int:
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return ROWS_AT_A_TIME
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    of_row = 2 * config.num_hidden_layers * heads * head_size * weight.element_size() * length
    memory = torch.cuda.get_device_properties(weight.device).total_memory
    return max(1, min(_ROWS_ON_A_GPU, int(memory * _SHARE_OF_A_GPU) // of_row))


class _Batch:
    """The rows that wait and those that are being drawn, with the keys and values of these and of their prompts."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], *, length: int, size: int):
        self.model, self.device = model, next(model.parameters()).device
        of_prompt: dict[tuple[int, ...], list[Row]] = {}
        for request, prompt in enumerate(prompts):
            of_prompt.setdefault(prompt, []).append(Row(request, prompt))
        self.waiting = deque(row for rows in of_prompt.values() for row in rows)
        self.rows: list[Row] = []
        self.prompts: list[tuple[int, ...]] = []
        self.size = min(size, len(prompts))
        # A row's last prompt token is its first input, so that drawing its first token is a step as any other.
        longest = max(map(len, prompts))
        self.stored_prompts = Store(min(self.size, len(of_prompt), max(1, _PROMPT_TOKENS // longest)), longest - 1)
        self.stored_rows = Store(self.size, length)

    def refill(self) -> None:
        """Let waiting rows in, where enough places are free, and compute the prompts that are new."""
        if self.rows and _REFILL * (self.size - len(self.rows)) < self.size:
            return
        known, new = set(self.prompts), []
        while self.waiting and len(self.rows) < self.size:
            prompt = self.waiting[0].prompt
            if prompt not in known:
                if len(known) == self.stored_prompts.places:
                    break
                known.add(prompt)
                new.append(prompt)
            self.rows.append(self.waiting.popleft())
        budget = token_budget(None, self.device)
        while new:
            count = max(1, budget // max(map(len, new)))
            self._prefill(new[:count])
            new = new[count:]

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Store the keys and values of all tokens of the prompts but their last."""
        longest = max(map(len, prompts)) - 1
        first = len(self.prompts)
        self.prompts += prompts
        if longest:
            # Padded on the right, where causal attention sees nothing of it; any token will do.
            ids = [[*prompt[:-1], *[prompt[0]] * (longest - len(prompt) + 1)] for prompt in prompts]
            self._forward(ids, list(range(longest)), Prefill(self.stored_prompts, first))

    def logits(self) -> Tensor:
        """[A, V] of the next token of each row."""
        steps = [len(row.tokens) for row in self.rows]
        place = {prompt: i for i, prompt in enumerate(self.prompts)}
        lengths = [len(prompt) - 1 for prompt in self.prompts]
        prompt_of = [place[row.prompt] for row in self.rows]
        step = Step(self.stored_prompts, self.stored_rows, steps, prompt_of, lengths, self.device)
        ids = [[row.tokens[-1] if row.tokens else row.prompt[-1]] for row in self.rows]
        positions = [[lengths[prompt] + done] for prompt, done in zip(prompt_of, steps, strict=True)]
        return self._forward(ids, positions, step)

    def _forward(self, ids: Sequence[Sequence[int]], positions: Sequence[Any], how: Prefill | Step) -> Tensor:
        input_ids = torch.tensor(ids, device=self.device)
        output = self.model(
            input_ids=input_ids,
            position_ids=torch.tensor(positions, device=self.device).expand_as(input_ids),
            # A mask of four dimensions is taken as it is, so that the library makes none; attention does not read it.
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.device),
            use_cache=False,
            logits_to_keep=1,
            naysay_decode=how,
        )
        return output.logits[:, -1]

    def retire(self, ended: Sequence[bool]) -> None:
        """Take the ended rows out, and the prompts that no row needs any more."""
        if not any(ended):
            return
        filled = max(len(row.tokens) for row in self.rows)
        order = _packed([not end for end in ended])
        self.stored_rows.arrange(order, filled)
        self.rows = [self.rows[i] for i in order]
        # Rows wait prompt by prompt: of those in store, only the first one's can be needed again.
        needed = {row.prompt for row in (*self.rows, *list(self.waiting)[:1])}
        order = _packed([prompt in needed for prompt in self.prompts])
        self.stored_prompts.arrange(order, self.stored_prompts.length)
        self.prompts = [self.prompts[i] for i in order]


def _packed(stays: Sequence[bool]) -> list[int]:
    """The places of those that stay, in their new order: the last ones fill the holes, so that few move."""
    kept = [place for place, stay in enumerate(stays) if stay]
    movers = iter(kept[::-1])
    return [place if stays[place] else next(movers) for place in range(len(kept))]


@contextmanager
def _attention_of(lm: Any) -> Iterator[None]:
    """Inside, the model's layers attend as `shared_attention` does."""
    shared_attention.register()
    own = lm.config._attn_implementation
    lm.config._attn_implementation = shared_attention.NAME
    try:
        yield
    finally:
        lm.config._attn_implementation = own


def why_not(model: Any) -> str:
    """Empty where the loop gives the logits of the model's own forward; checked once a model, on random answers.

    Where it does not (state-space layers, soft-capped attention), a warning says so and why.
    """
    if model not in _reasons:
        bind_parts(causal_lm(model))
        _reasons[model] = _find_reason(model)
        if _reasons[model]:
            logger.warning(
                "%s: %s; sampling with transformers' own generate (the same distribution, but slower)",
                type(model).__name__,
                _reasons[model],
            )
    return _reasons[model]


@torch.inference_mode()
def _find_reason(model: Any) -> str:
    prompts, answers = _check_rows(model.config.get_text_config())
    found: list[list[Tensor]] = [[] for _ in answers]

    def follow(logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        for row, logits_V in zip(rows, logits, strict=True):
            found[row.request].append(logits_V)
        return torch.tensor([answers[row.request][len(row.tokens)] for row in rows]), torch.zeros(len(rows))

    def ended(row: Row) -> bool:
        return row.tokens == answers[row.request]

    try:
        decode(model, prompts, follow, ended, length=max(map(len, answers)), rows_at_a_time=3)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        return f"its layers refuse rows that share a prompt ({' '.join(str(error).split())[:120]})"
    difference = 0.0
    for prompt, answer, logits in zip(prompts, answers, found, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=logits[0].device)
        expected = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        change = expected.double().log_softmax(-1) - torch.stack(logits).double().log_softmax(-1)
        difference = max(difference, change.abs().max().item())
    tolerance = _CHECK_TOLERANCE.get(next(model.parameters()).dtype, _CHECK_TOLERANCE_HALF)
    return "" if difference <= tolerance else f"sharing a prompt changes log-probs by up to {difference:.2g} nats"


def _check_rows(config: Any) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Prompts and their answers: two rows share a prompt, another's is one token, one waits until others have ended,
    and answers reach beyond a small sliding window."""
    window = getattr(config, "sliding_window", None) or 0
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=generator).tolist()

    shared = tuple(ids(min(window + 3, 64) if window else 5))
    return [shared, shared, tuple(ids(1)), tuple(ids(3))], [ids(2), ids(4), ids(1), ids(3)]
