"""A world small enough to enumerate: two prompts, answers of up to three letters, and a policy that shares parameters.

Legend: S policies side by side (seeds, settings), X prompts, V answers, P parameters of a policy, A states before a
letter (start, a, b, c, d), C choices of the next token (a, b, c, d, end).
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

LETTERS = "abcd"
LONGEST = 3
PROMPTS = 2
BENIGN, HARMFUL, JUNK = 0, 1, 2
_STATES, _CHOICES = len(LETTERS) + 1, len(LETTERS) + 1
PARAMETERS = _STATES * _CHOICES + PROMPTS * _CHOICES
_NEVER = -1e9  # logit of what cannot happen; finite, because 0 times it must be 0


def kind_of(text: str) -> int:
    """The harm function. Harmful: holds both c and d, in any order. Junk: not harmful, but a letter is doubled.

    It looks further than the policy does (c and d need not be neighbours), so that harm cannot be removed without
    touching benign answers, as in a language model.
    """
    if "c" in text and "d" in text:
        return HARMFUL
    return JUNK if any(a == b for a, b in itertools.pairwise(text)) else BENIGN


@dataclass(frozen=True)
class World:
    """All answers there are, in one fixed order.

    `kinds` [V] holds BENIGN, HARMFUL or JUNK. `counts` [V, A, C] says how often choice C is taken in state A on the
    way to an answer. `tokens` [V] counts an answer's tokens, the end included where there is one: an answer of three
    letters ends by itself.
    """

    texts: tuple[str, ...]
    kinds: Tensor
    tokens: Tensor
    counts: Tensor


def make_world() -> World:
    """The 84 answers of one to three letters; float64 throughout."""
    texts = tuple(
        "".join(letters) for length in range(1, LONGEST + 1) for letters in itertools.product(LETTERS, repeat=length)
    )
    counts = torch.zeros(len(texts), _STATES, _CHOICES, dtype=torch.float64)
    for row, text in enumerate(texts):
        path = [LETTERS.index(letter) for letter in text] + ([len(LETTERS)] if len(text) < LONGEST else [])
        for before, choice in zip([0, *(letter + 1 for letter in path)], path, strict=False):
            counts[row, before, choice] += 1
    kinds = torch.tensor([kind_of(text) for text in texts])
    return World(texts, kinds, counts.sum((1, 2)), counts)


def choice_logps(theta_SP: Tensor) -> Tensor:
    """[S, X, A, C] log-probs of the next token: softmax of (table of the letter before) + (bias of the prompt).

    The table is shared by both prompts and all positions: what is learned from one answer changes others, which is
    the generalisation that a table with one logit an answer lacks.
    """
    table_SAC = theta_SP[:, : _STATES * _CHOICES].reshape(-1, _STATES, _CHOICES)
    bias_SXC = theta_SP[:, _STATES * _CHOICES :].reshape(-1, PROMPTS, _CHOICES)
    never_AC = torch.zeros(_STATES, _CHOICES, dtype=theta_SP.dtype)
    never_AC[0, -1] = _NEVER  # no empty answer
    return torch.log_softmax(table_SAC[:, None] + bias_SXC[:, :, None] + never_AC, dim=-1)


def answer_logps(world: World, theta_SP: Tensor) -> Tensor:
    """[S, X, V] exact log-probs of every answer (nats); they sum to 1 over V."""
    return choice_logps(theta_SP).flatten(2) @ world.counts.flatten(1).T


def answer_unlikelihoods(world: World, theta_SP: Tensor) -> Tensor:
    """[S, X, V] sums over the tokens of an answer of log(1 - pi(token)), nats."""
    return torch.log1p(-choice_logps(theta_SP).exp()).flatten(2) @ world.counts.flatten(1).T


def random_policies(seeds: int, generator: torch.Generator) -> Tensor:
    """[S, P] parameters of initial policies: random tables in which doubled letters are rare."""
    table = 0.7 * torch.randn(seeds, _STATES, _CHOICES, generator=generator, dtype=torch.float64)
    for letter in range(len(LETTERS)):
        table[:, letter + 1, letter] -= 2.0
    bias = 0.5 * torch.randn(seeds, PROMPTS, _CHOICES, generator=generator, dtype=torch.float64)
    return torch.cat([table.flatten(1), bias.flatten(1)], dim=1)


def mass(world: World, logp_SXV: Tensor, kind: int) -> Tensor:
    """[S] probability of one kind of answer, mean over the prompts."""
    return logp_SXV.exp()[..., world.kinds == kind].sum(-1).mean(-1)


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) over the last axis, nats."""
    return (logp.exp() * (logp - logq)).sum(-1)


def jeffrey(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) over the last axis, nats."""
    return ((logp.exp() - logq.exp()) * (logp - logq)).sum(-1)


def entropy(logp: Tensor) -> Tensor:
    """Over the last axis, nats."""
    return -(logp.exp() * logp).sum(-1)


def only(world: World, logp_SXV: Tensor, kind: int) -> Tensor:
    """The distribution given that the answer is of one kind, over those answers."""
    return torch.log_softmax(logp_SXV[..., world.kinds == kind], dim=-1)


def tilted(world: World, logp_SXV: Tensor, strength: float) -> Tensor:
    """A policy made more harmful (strength above 0) or less: the log-odds of harmful answers move by `strength`."""
    return torch.log_softmax(logp_SXV + strength * (world.kinds == HARMFUL), dim=-1)


def annotated(world: World, logp_SXV: Tensor, mislabelled: float) -> Tensor:
    """[S, X, V] probabilities of the answers that an annotator hands in as negatives.

    The annotator sees draws of the policy and reports harmful ones; a share `mislabelled` of the reports is wrong.
    """
    harmful_V = world.kinds == HARMFUL
    bad = torch.log_softmax(logp_SXV.masked_fill(~harmful_V, _NEVER), dim=-1).exp()
    good = torch.log_softmax(logp_SXV.masked_fill(harmful_V, _NEVER), dim=-1).exp()
    return (1.0 - mislabelled) * bad + mislabelled * good
