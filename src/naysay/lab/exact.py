"""Expectations over anchors without sampling: every set of K anchors is enumerated with its probability.

Legend: V answers to one prompt, K anchors, M sets of anchors; one group a set, every answer a possible negative.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from naysay.core.groups import GroupLogps
from naysay.core.objective import d2o_loss
from naysay.lab.world import kl


@dataclass(frozen=True)
class Instance:
    """One prompt: policy, references, sampler of the anchors and annotator, all as log-probs [V]; α and β.

    `negative` is r⁻ (under the anchors), `positive` is r⁺ (under the negatives).
    """

    policy: Tensor
    negative: Tensor
    positive: Tensor
    sampler: Tensor
    annotator: Tensor
    alpha: float
    beta: float

    def mean_log_ratios(self) -> tuple[Tensor, Tensor]:
        """E_s log(π/r⁻) and, for each answer as the negative, log(π/r⁺) [V]."""
        return (self.sampler.exp() * (self.policy - self.negative)).sum(), self.policy - self.positive


def random_instance(answers: int, generator: torch.Generator, *, alpha: float, beta: float) -> Instance:
    """Five independent random distributions."""
    rows = torch.log_softmax(torch.randn(5, answers, generator=generator, dtype=torch.float64), dim=-1)
    return Instance(*rows, alpha=alpha, beta=beta)


def anchor_sets(answers: int, size: int) -> tuple[Tensor, Tensor]:
    """All multisets of anchors [M, K] and the log of how many orders each can be drawn in [M].

    The loss does not depend on the order, so multisets stand for all V^K tuples.
    """
    sets = list(itertools.combinations_with_replacement(range(answers), size))
    index_MK = torch.tensor(sets, dtype=torch.long).reshape(len(sets), size)
    counts_MV = F.one_hot(index_MK, answers).sum(1)
    return index_MK, math.lgamma(size + 1) - torch.lgamma(counts_MV.double() + 1).sum(1)


def set_probabilities(log_sampler_V: Tensor, index_MK: Tensor, log_orders_M: Tensor) -> Tensor:
    """[M] probability of each multiset when K anchors are drawn independently; sums to 1."""
    return (log_sampler_V[index_MK].sum(1) + log_orders_M).exp()


def group_of(instance: Instance, anchors_MK: Tensor, ref_anchors_MK: Tensor) -> GroupLogps:
    """A group for every set of anchors, with every answer as a negative."""
    negatives_MV = instance.policy.expand(len(anchors_MK), -1)
    return GroupLogps(
        anchors=anchors_MK,
        ref_anchors=ref_anchors_MK,
        anchor_mask=torch.ones_like(anchors_MK, dtype=torch.bool),
        negatives=negatives_MV,
        ref_negatives=instance.positive.expand(len(anchors_MK), -1),
        negative_mask=torch.ones_like(negatives_MV, dtype=torch.bool),
    )


def expected_loss(instance: Instance, size: int) -> float:
    """E[L_K] by the library's loss: K anchors from the sampler, the negative from the annotator. Exact."""
    index_MK, log_orders_M = anchor_sets(len(instance.policy), size)
    group = group_of(instance, instance.policy[index_MK], instance.negative[index_MK])
    loss_MV = d2o_loss(group, alpha=instance.alpha, beta=instance.beta).loss
    return float(set_probabilities(instance.sampler, index_MK, log_orders_M) @ loss_MV @ instance.annotator.exp())


def limit_loss(instance: Instance) -> float:
    """L_∞ by the library's loss: one pseudo-anchor whose log-probs are the sampler's means (the loss is a function of
    the anchors' mean log-ratio)."""
    probs_V = instance.sampler.exp()
    anchor_11, ref_11 = ((probs_V * x).sum().reshape(1, 1) for x in (instance.policy, instance.negative))
    terms = d2o_loss(group_of(instance, anchor_11, ref_11), alpha=instance.alpha, beta=instance.beta)
    return float(terms.loss[0] @ instance.annotator.exp())


def mean_margin(instance: Instance, size: int) -> float:
    """E[m] over anchors and negatives by the library's margin."""
    index_MK, log_orders_M = anchor_sets(len(instance.policy), size)
    group = group_of(instance, instance.policy[index_MK], instance.negative[index_MK])
    margin_MV = d2o_loss(group, alpha=instance.alpha, beta=instance.beta).margin
    return float(set_probabilities(instance.sampler, index_MK, log_orders_M) @ margin_MV @ instance.annotator.exp())


def margin_identity(instance: Instance) -> float:
    """β[KL(s‖r⁻) − KL(s‖π)] − α[KL(μ‖r⁺) − KL(μ‖π)], what E[m] must be."""
    s, mu = instance.sampler, instance.annotator
    anchors = kl(s, instance.negative) - kl(s, instance.policy)
    negatives = kl(mu, instance.positive) - kl(mu, instance.policy)
    return float(instance.beta * anchors - instance.alpha * negatives)


def variance_of_ratio(instance: Instance) -> float:
    """Var_s log(π/r⁻)."""
    ratio_V, probs_V = instance.policy - instance.negative, instance.sampler.exp()
    return float(probs_V @ ratio_V**2 - (probs_V @ ratio_V) ** 2)
