"""From the name of an objective to the terms of a batch: which of a group's answers it reads, and its loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from naysay.config.objectives import D2O, OBJECTIVES, AnchorUse
from naysay.core import baselines
from naysay.core.groups import Answers, D2OTerms, GroupLogps
from naysay.core.objective import d2o_loss
from naysay.errors import ConfigError


@dataclass(frozen=True)
class Others:
    """What only some objectives read beside the log-probs of anchors and negatives.

    Example: `Others(negative_tokens=torch.tensor([[12.0]]))`. Shapes: `negative_tokens` and `negative_unlikelihood`
    (Σ_t log(1 − π), nats) are [B, N]; `constant` is KTO's z₀ or BCO's δ (nats), detached.
    """

    negative_tokens: Tensor
    negative_unlikelihood: Tensor | None = None
    chosen: Answers | None = None
    unrelated: Answers | None = None
    constant: float = 0.0


@dataclass(frozen=True)
class Objective:
    """An objective with its parameters. Example: `make_objective("npo", {"beta": 0.1})`.

    A pair whose weight is below `skip_weight_below` is finished and gets no gradient; at 0 none is.
    """

    name: str
    args: Mapping[str, float] = field(default_factory=dict)
    skip_weight_below: float = 0.0

    @property
    def anchors_read(self) -> AnchorUse:
        return OBJECTIVES[self.name].anchors_read

    @property
    def needs_chosen(self) -> bool:
        return OBJECTIVES[self.name].needs_chosen

    @property
    def needs_normal(self) -> bool:
        return OBJECTIVES[self.name].needs_normal

    @property
    def needs_unrelated(self) -> bool:
        """An answer to another prompt, trained on."""
        return self.name == "llmu"

    @property
    def needs_mismatched(self) -> bool:
        """Log-ratios of negatives under other prompts, constants of each step."""
        return self.name == "kto_negative"

    @property
    def needs_unlikelihood(self) -> bool:
        return self.name == "unlikelihood"

    def terms(self, group: GroupLogps, others: Others) -> D2OTerms:
        """Unreduced terms of every pair; D²O's or a baseline's."""
        extra: list[Any] = []
        args: dict[str, Any] = dict(self.args)
        if self.name in {"dpo", "ipo", "slic", "simpo", "sft_chosen"}:
            extra.append(others.chosen)
        if self.name in {"simnpo", "simpo"}:
            extra.append(others.negative_tokens)
        if self.name == "unlikelihood":
            extra.append(others.negative_unlikelihood)
        if self.name == "llmu":
            extra.append(others.unrelated)
        if self.name in _CONSTANT:
            args[_CONSTANT[self.name]] = others.constant
        loss = d2o_loss if self.name == D2O else getattr(baselines, f"{self.name}_loss")
        return loss(group, *extra, **args)


_CONSTANT = {"kto_negative": "z0", "bco_negative": "delta"}


def make_objective(name: str, args: Mapping[str, float] | None = None) -> Objective:
    """The objective with its defaults filled in.

    Raises:
        ConfigError: no such objective, a parameter that it does not have, or an impossible value.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"objective is {name!r}; expected one of {', '.join(OBJECTIVES)}")
    known = list(OBJECTIVES[name]().objective_args)
    for key in args or {}:
        if key not in known:
            raise ConfigError(
                f"objective_args: {key!r} is not read by objective {name!r}; its own are {', '.join(known) or 'none'}"
            )
    try:
        training = OBJECTIVES[name].model_validate(dict(args or {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or name
        raise ConfigError(f"objective_args: {key}: {first['msg']} (found {first['input']!r})") from error
    return Objective(name, training.objective_args)
