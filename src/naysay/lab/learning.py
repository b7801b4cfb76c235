"""Training the world's policy with the library's own losses, many policies side by side.

Legend: S policies, X prompts, V answers, P parameters, G groups of a policy, K anchors, C chosen answers; B = S*G.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from naysay.core.baselines import (
    altpo_loss,
    dpo_loss,
    dpo_self_loss,
    ga_loss,
    npo_loss,
    simnpo_loss,
    unlikelihood_loss,
)
from naysay.core.groups import Answers, D2OTerms, GroupLogps
from naysay.core.objective import d2o_loss
from naysay.lab.world import HARMFUL, PROMPTS, World, answer_logps, answer_unlikelihoods, mass
from naysay.statistics import bootstrap_mean


@dataclass(frozen=True)
class Draws:
    """The training data of S policies: `prompts` and `negatives` [S, G] (one negative a group), `anchors` [S, G, K] and
    `chosen` [S, G, C]; answers are indices into the world's."""

    prompts: Tensor
    negatives: Tensor
    anchors: Tensor
    chosen: Tensor | None = None


@dataclass(frozen=True)
class References:
    """[S, X, V] log-probs: `negative` is r⁻ (under the anchors), `positive` is r⁺ (under the negatives)."""

    negative: Tensor
    positive: Tensor


@dataclass(frozen=True)
class Data:
    """Draws with their places in a flat [S*X*V] table and their reference log-probs, looked up once; rows are S*G."""

    world: World
    anchors: Tensor
    negatives: Tensor
    chosen: Tensor | None
    ref_anchors: Tensor
    ref_negatives: Tensor
    ref_chosen: Tensor | None


@dataclass(frozen=True)
class Batch:
    """What an objective may read of S*G groups."""

    data: Data
    group: GroupLogps
    logps: Tensor
    theta: Tensor

    @property
    def negative_tokens(self) -> Tensor:
        """[B, 1]."""
        return self.data.world.tokens[self.data.negatives % len(self.data.world.texts)]

    @property
    def negative_unlikelihood(self) -> Tensor:
        """[B, 1] sums over tokens of log(1 − π), nats."""
        return answer_unlikelihoods(self.data.world, self.theta).flatten()[self.data.negatives]

    @property
    def chosen(self) -> Answers:
        index_BC, ref_BC = self.data.chosen, self.data.ref_chosen
        assert index_BC is not None, "the lab drew no chosen answers for this objective"
        assert ref_BC is not None
        tokens_BC = self.data.world.tokens[index_BC % len(self.data.world.texts)]
        return Answers(self.logps[index_BC], ref_BC, torch.ones_like(ref_BC, dtype=torch.bool), tokens_BC)


Objective = Callable[[Batch], D2OTerms]


def objectives(beta: float) -> Mapping[str, Objective]:
    """The compared objectives, all with one β (and α = β); SimNPO with γ = 0, as its authors do."""
    return {
        "d2o": lambda batch: d2o_loss(batch.group, alpha=beta, beta=beta),
        "npo": lambda batch: npo_loss(batch.group, beta=beta),
        "simnpo": lambda batch: simnpo_loss(batch.group, batch.negative_tokens, beta=beta, gamma=0.0),
        "ga": lambda batch: ga_loss(batch.group),
        "unlikelihood": lambda batch: unlikelihood_loss(batch.group, batch.negative_unlikelihood),
        "dpo_self": lambda batch: dpo_self_loss(batch.group, beta=beta),
        "altpo": lambda batch: altpo_loss(batch.group, beta=beta),
        "dpo": lambda batch: dpo_loss(batch.group, batch.chosen, beta=beta),
    }


def draw(probs_SXV: Tensor, prompt_SG: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """[S, G, each] answers drawn for every group from its prompt's distribution."""
    rows_SGV = probs_SXV[torch.arange(len(prompt_SG))[:, None], prompt_SG]
    drawn = torch.multinomial(rows_SGV.flatten(0, 1), each, replacement=True, generator=generator)
    return drawn.reshape(*prompt_SG.shape, each)


def balanced_prompts(policies: int, groups: int) -> Tensor:
    """[S, G] every prompt equally often."""
    return (torch.arange(groups) % PROMPTS).expand(policies, -1)


def prepare(world: World, references: References, draws: Draws) -> Data:
    """Look up the references: r⁻ under the anchors (and under chosen answers), r⁺ under the negatives."""
    policies, answers = len(draws.prompts), len(world.texts)
    row_SG1 = (torch.arange(policies)[:, None] * PROMPTS + draws.prompts)[..., None]

    def place(index_SGK: Tensor) -> Tensor:
        return (row_SG1 * answers + index_SGK).flatten(0, 1)

    anchors, negatives = place(draws.anchors), place(draws.negatives[..., None])
    chosen = None if draws.chosen is None else place(draws.chosen)
    below, above = references.negative.flatten(), references.positive.flatten()
    ref_chosen = None if chosen is None else below[chosen]
    return Data(world, anchors, negatives, chosen, below[anchors], above[negatives], ref_chosen)


def make_batch(theta_SP: Tensor, data: Data) -> Batch:
    """Look up every drawn answer under the policy, with gradient."""
    logps = answer_logps(data.world, theta_SP).flatten()
    group = GroupLogps(
        anchors=logps[data.anchors],
        ref_anchors=data.ref_anchors,
        anchor_mask=torch.ones_like(data.anchors, dtype=torch.bool),
        negatives=logps[data.negatives],
        ref_negatives=data.ref_negatives,
        negative_mask=torch.ones_like(data.negatives, dtype=torch.bool),
    )
    return Batch(data, group, logps, theta_SP)


@dataclass(frozen=True)
class Course:
    """A training run: parameters after every step [T+1, S, P], the start included."""

    path: Tensor

    def along(self, measure: Callable[[Tensor], Tensor], world: World) -> Tensor:
        """[T+1, S] a measure of the answers' log-probs [S, X, V] at every step."""
        return torch.stack([measure(answer_logps(world, theta_SP)) for theta_SP in self.path])

    def first_at(self, values_TS: Tensor, target: float) -> tuple[Tensor, Tensor]:
        """Parameters [S, P] and step [S] at which a value first falls to the target, between two steps by straight
        lines. Policies that never get there stand at their end, their step is NaN."""
        last = len(values_TS) - 1
        below_TS = values_TS <= target
        reached_S = below_TS.any(0)
        after_S = torch.where(reached_S, below_TS.double().argmax(0), last).clamp(min=1)
        policy_S = torch.arange(values_TS.shape[1])
        high_S, low_S = values_TS[after_S - 1, policy_S], values_TS[after_S, policy_S]
        part_S = torch.where(reached_S, (high_S - target) / (high_S - low_S), torch.ones_like(high_S)).clamp(0, 1)
        before_SP, after_SP = self.path[after_S - 1, policy_S], self.path[after_S, policy_S]
        step_S = torch.where(reached_S, after_S - 1 + part_S, torch.nan)
        return before_SP + part_S[:, None] * (after_SP - before_SP), step_S


def train(
    world: World,
    start_SP: Tensor,
    references: References,
    draws: Draws | Callable[[Tensor], Draws],
    objective: Objective,
    *,
    steps: int,
    rate: float,
    unit_speed: bool = False,
    scale: float = 1.0,
) -> Course:
    """Plain full-batch gradient descent of the mean loss over each policy's groups.

    Args:
        world, references: where, and r⁻ and r⁺.
        start_SP: where each policy starts.
        draws: the data, or a function of the current parameters that draws them anew at every step.
        objective: loss of a batch; policies do not touch each other.
        steps, rate: how many and how long.
        unit_speed: divide each policy's gradient by its norm. The path is that of gradient flow whatever the scale of
            the loss, so that no objective has a better learning rate than another.
        scale: factor on the loss.
    """
    theta_SP = start_SP.clone()
    path = [theta_SP.clone()]
    fixed = None if callable(draws) else prepare(world, references, draws)
    for _ in range(steps):
        data = prepare(world, references, draws(theta_SP)) if callable(draws) else fixed
        assert data is not None
        theta_SP = theta_SP.detach().requires_grad_()
        terms = objective(make_batch(theta_SP, data))
        loss = scale * terms.loss.reshape(len(theta_SP), -1).mean(1).sum()
        (gradient_SP,) = torch.autograd.grad(loss, theta_SP)
        if unit_speed:
            gradient_SP = gradient_SP / gradient_SP.norm(dim=1, keepdim=True).clamp(min=1e-12)
        theta_SP = theta_SP.detach() - rate * gradient_SP
        path.append(theta_SP)
    return Course(torch.stack(path))


def harm_left(world: World, course: Course, initial_SXV: Tensor) -> Tensor:
    """[T+1, S] harmful mass at every step as a share of the initial policy's."""
    return course.along(lambda logp: mass(world, logp, HARMFUL), world) / mass(world, initial_SXV, HARMFUL)


def summary(values_S: Tensor) -> dict[str, Any]:
    """Mean over seeds with its 95 % interval; NaN, which fails every comparison, where a run broke down."""
    if len(values_S) < 2 or not bool(values_S.isfinite().all()):
        return {"value": math.nan, "ci_low": math.nan, "ci_high": math.nan, "n": len(values_S)}
    return bootstrap_mean(values_S.tolist(), samples=1000).as_dict()


def ratio_summary(over_S: Tensor, under_S: Tensor) -> dict[str, Any]:
    """Geometric mean over seeds of a ratio with its 95 % interval."""
    logs = summary((over_S / under_S).log())
    return {key: math.exp(min(logs[key], 700.0)) for key in ("value", "ci_low", "ci_high")} | {"n": logs["n"]}
