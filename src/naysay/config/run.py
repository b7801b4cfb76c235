"""The whole configuration of a run."""

from typing import Self

from pydantic import Field, model_validator

from naysay.config.anchors import AnchorsConfig
from naysay.config.base import Section
from naysay.config.data import DataConfig
from naysay.config.evaluation import EvaluationConfig
from naysay.config.guard import GuardConfig
from naysay.config.judging import Judges
from naysay.config.model import ModelConfig
from naysay.config.objectives import D2OTraining, TrainingConfig
from naysay.config.references import INITIAL, ReferencesConfig
from naysay.config.sampling import SamplingConfig


class RunConfig(Section):
    """Everything that decides what a run computes."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split, of every anchor and generation, and of the order of the training data."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    anchors: AnchorsConfig = Field(default_factory=AnchorsConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    references: ReferencesConfig = Field(default_factory=ReferencesConfig)
    training: TrainingConfig = Field(default_factory=D2OTraining)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    judges: Judges = ()
    """Judges of harm, of the answers before and after; the first decides, the agreement of all is reported."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.anchors.schedule == "online" and self.training.anchors_read == "none":
            raise ValueError(
                f"anchors.schedule is online, but training.objective {self.training.objective!r} reads no anchors; "
                "use anchors.schedule: offline, or an objective that reads them"
            )
        if self.training.early_stopping.enabled and self.data.limit.dev == 0:
            raise ValueError(
                "training.early_stopping.enabled needs dev prompts, and data.limit.dev is 0; raise it, or leave early "
                "stopping off"
            )
        if self.anchors.acceptable_share > 0.0 and self.training.anchors_read != "all":
            raise ValueError(
                f"anchors.acceptable_share is {self.anchors.acceptable_share:g}, but training.objective "
                f"{self.training.objective!r} reads {_ANCHORS_READ[self.training.anchors_read]}; leave it at 0, or use "
                "an objective that reads all anchors (d2o, altpo)"
            )
        for role in ("positive", "negative"):
            name = getattr(self.references, role)
            if name != INITIAL and role not in self.training.references_read:
                raise ValueError(
                    f"references.{role} is {name!r}, but the gradient of training.objective "
                    f"{self.training.objective!r} does not depend on it; leave it out"
                )
        return self


_ANCHORS_READ = {"none": "no anchors", "first": "the first own anchor alone"}
