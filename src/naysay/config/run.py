"""The whole configuration of a run."""

from pydantic import Field

from naysay.config.anchors import AnchorsConfig
from naysay.config.base import Section
from naysay.config.data import DataConfig
from naysay.config.evaluation import EvaluationConfig
from naysay.config.model import ModelConfig
from naysay.config.references import ReferencesConfig
from naysay.config.sampling import SamplingConfig
from naysay.config.training import TrainingConfig


class RunConfig(Section):
    """Everything that decides what a run computes."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split, of every anchor and generation, and of the order of the training data."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    anchors: AnchorsConfig = Field(default_factory=AnchorsConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    references: ReferencesConfig = Field(default_factory=ReferencesConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
