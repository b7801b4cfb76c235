"""`training.objective`: D²O or one of the baselines, each with the parameters that it reads and no others.

The formulas stand in `core/baselines.py`. Defaults are each source's own where it names one, else our choice.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from naysay.config.training import TrainingSettings

Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]
AnchorUse = Literal["all", "first", "none"]

D2O = "d2o"
"""The objective where none is named."""


class _Objective(TrainingSettings):
    """What an objective needs of the data, for whoever prepares or refuses it."""

    anchors_read: ClassVar[AnchorUse] = "none"
    """`none`: one anchor a prompt is still computed, to log what happens to it; it has no weight in the loss."""

    references_read: ClassVar[tuple[str, ...]] = ()
    """Which of `references.*` the gradient depends on: `negative` stands under anchors and chosen answers."""

    needs_chosen: ClassVar[bool] = False
    """An answer that people preferred, for every prompt."""

    needs_normal: ClassVar[bool] = False
    """Benign prompts with answers, trained on."""

    @property
    def own_settings(self) -> dict[str, float]:
        """The keys that other objectives do not have."""
        shared = {"objective", *TrainingSettings.model_fields}
        return {name: getattr(self, name) for name in type(self).model_fields if name not in shared}

    @property
    def objective_args(self) -> dict[str, float]:
        """The parameters of the objective itself."""
        return {name: value for name, value in self.own_settings.items() if name != "skip_weight_below"}

    @property
    def margin_weights(self) -> tuple[float, float]:
        """(α, β) of the margin that the evaluation reports: the paper's, so that it means the same for all."""
        return 0.1, 0.1

    @property
    def described(self) -> str:
        """The objective on one line, e.g. `d2o (alpha = 0.1, beta = 0.1)`."""
        args = ", ".join(f"{name} = {value:g}" for name, value in self.objective_args.items())
        name = type(self).model_fields["objective"].default
        return f"{name} ({args})" if args else name


class D2OTraining(_Objective):
    """Distributional Dispreference Optimization."""

    anchors_read: ClassVar[AnchorUse] = "all"
    references_read: ClassVar[tuple[str, ...]] = ("positive", "negative")

    objective: Literal["d2o"] = "d2o"
    """`d2o`, or a baseline: `naysay compare` trains several on the same rows."""

    alpha: Weight = 0.1
    """Weight of the negative's log-ratio. 0.1 is the paper's."""

    beta: Weight = 0.1
    """Weight of the anchors' mean log-ratio. 0.1 is the paper's."""

    skip_weight_below: float = Field(default=1e-4, ge=0.0, lt=0.5)
    """A pair is finished where its weight w = 1 - sigmoid(margin) is below this: it gets no gradient, and a forward
    whose pairs are all finished gets no backward. 0 = never. A finished pair would have added less than this times
    the gradient that its answers have without w; a new pair adds 1/2 of it. Our choice."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.alpha == 0.0 and self.beta == 0.0:
            raise ValueError("alpha and beta are both 0: the loss would be the constant log 2; set one above 0")
        return self

    @property
    def margin_weights(self) -> tuple[float, float]:
        return self.alpha, self.beta


class NPOTraining(_Objective):
    """Negative preference optimization."""

    references_read: ClassVar[tuple[str, ...]] = ("positive",)

    objective: Literal["npo"] = "npo"
    """Which objective this is."""

    beta: Positive = 0.1
    """Inverse temperature; the source's default."""


class SimNPOTraining(_Objective):
    """NPO without a reference, normalised by length."""

    objective: Literal["simnpo"] = "simnpo"
    """Which objective this is."""

    beta: Positive = 2.5
    """Inverse temperature of the log-prob per token; one of the source's."""
    gamma: float = 0.0
    """Margin in the sigmoid; the source's default."""


class GATraining(_Objective):
    """Gradient ascent on the negatives. It has no parameter, and no bound."""

    objective: Literal["ga"] = "ga"
    """Which objective this is."""


class LLMUTraining(_Objective):
    """Gradient ascent, answers to other prompts, and a KL on normal data."""

    needs_normal: ClassVar[bool] = True

    objective: Literal["llmu"] = "llmu"
    """Which objective this is."""

    forget: Weight = 0.5
    """ε₁, of gradient ascent; as in the source's code."""
    mismatch: Weight = 1.0
    """ε₂, of unrelated answers; as in the source's code."""
    normal: Weight = 1.0
    """ε₃, of the KL on normal data; as in the source's code."""


class UnlikelihoodTraining(_Objective):
    """Token-level unlikelihood. It has no parameter."""

    objective: Literal["unlikelihood"] = "unlikelihood"
    """Which objective this is."""


class KTONegativeTraining(_Objective):
    """The undesirable side of KTO."""

    references_read: ClassVar[tuple[str, ...]] = ("positive",)

    objective: Literal["kto_negative"] = "kto_negative"
    """Which objective this is."""

    beta: Positive = 0.1
    """Inverse temperature; the source's default."""
    lambda_u: Positive = 1.0
    """Weight of an undesirable answer; the source's default."""


class BCONegativeTraining(_Objective):
    """The undesirable side of BCO."""

    references_read: ClassVar[tuple[str, ...]] = ("positive",)

    objective: Literal["bco_negative"] = "bco_negative"
    """Which objective this is."""

    beta: Positive = 0.1
    """Inverse temperature; the source's default. δ is the running mean of β r up to the step before."""


class ULMANegativeTraining(_Objective):
    """The negative part of ULMA."""

    references_read: ClassVar[tuple[str, ...]] = ("positive",)

    objective: Literal["ulma_negative"] = "ulma_negative"
    """Which objective this is."""

    beta: Positive = 0.1
    """Inverse temperature; our choice."""
    c: float = 0.0
    """Stands for the unknown log-partition; our choice."""


class AltPOTraining(_Objective):
    """One sigmoid for each self-generated answer."""

    anchors_read: ClassVar[AnchorUse] = "all"
    references_read: ClassVar[tuple[str, ...]] = ("positive", "negative")

    objective: Literal["altpo"] = "altpo"
    """Which objective this is."""

    beta: Positive = 0.1
    """Inverse temperature; the source's default."""


class PMPONegativeTraining(_Objective):
    """PMPO from negatives only: log-prob of the negative plus a KL on the anchors."""

    anchors_read: ClassVar[AnchorUse] = "all"

    objective: Literal["pmpo_negative"] = "pmpo_negative"
    """Which objective this is."""

    beta: Weight = 1.0
    """Weight of the KL; our choice."""


class DPOSelfTraining(_Objective):
    """DPO with one self-generated answer as the positive."""

    anchors_read: ClassVar[AnchorUse] = "first"
    references_read: ClassVar[tuple[str, ...]] = ("positive", "negative")

    objective: Literal["dpo_self"] = "dpo_self"
    """Which objective this is."""

    beta: Positive = 0.1
    """Inverse temperature; the source's default."""


class _Paired(_Objective):
    needs_chosen: ClassVar[bool] = True


class DPOTraining(_Paired):
    """DPO; needs human-chosen answers."""

    references_read: ClassVar[tuple[str, ...]] = ("positive", "negative")

    objective: Literal["dpo"] = "dpo"
    """Which objective this is."""

    beta: Positive = 0.1
    """Inverse temperature; the source's default."""


class IPOTraining(_Paired):
    """IPO; needs human-chosen answers."""

    references_read: ClassVar[tuple[str, ...]] = ("positive", "negative")

    objective: Literal["ipo"] = "ipo"
    """Which objective this is."""

    tau: Positive = 0.1
    """Regularisation: the log-ratio gap is drawn to 1/(2 tau) nats; our choice."""


class SLiCTraining(_Paired):
    """SLiC; needs human-chosen answers."""

    objective: Literal["slic"] = "slic"
    """Which objective this is."""

    delta: Positive = 1.0
    """Margin of the hinge, nats; our choice."""
    lambda_sft: Weight = 0.1
    """Weight of the cross-entropy on the chosen answer; our choice."""


class SimPOTraining(_Paired):
    """SimPO; needs human-chosen answers."""

    objective: Literal["simpo"] = "simpo"
    """Which objective this is."""

    beta: Positive = 2.0
    """Inverse temperature of the log-prob per token; one of the source's."""
    gamma: float = 1.0
    """Margin in the sigmoid; one of the source's."""


class SFTChosenTraining(_Paired):
    """Supervised fine-tuning on human-chosen answers. It has no parameter."""

    objective: Literal["sft_chosen"] = "sft_chosen"
    """Which objective this is."""


_CLASSES: tuple[type[_Objective], ...] = (
    *(D2OTraining, NPOTraining, SimNPOTraining, GATraining, LLMUTraining, UnlikelihoodTraining, KTONegativeTraining),
    *(BCONegativeTraining, ULMANegativeTraining, AltPOTraining, PMPONegativeTraining, DPOSelfTraining),
    *(DPOTraining, IPOTraining, SLiCTraining, SimPOTraining, SFTChosenTraining),
)
OBJECTIVES: dict[str, type[_Objective]] = {cls.model_fields["objective"].default: cls for cls in _CLASSES}
"""Every objective by its name, D²O first."""


def objective_name(training: Any) -> Any:
    """The objective that a raw or validated `training` section names; D²O where it names none."""
    return training.get("objective", D2O) if isinstance(training, dict) else getattr(training, "objective", None)


TrainingConfig = Annotated[
    Annotated[D2OTraining, Tag("d2o")]
    | Annotated[NPOTraining, Tag("npo")]
    | Annotated[SimNPOTraining, Tag("simnpo")]
    | Annotated[GATraining, Tag("ga")]
    | Annotated[LLMUTraining, Tag("llmu")]
    | Annotated[UnlikelihoodTraining, Tag("unlikelihood")]
    | Annotated[KTONegativeTraining, Tag("kto_negative")]
    | Annotated[BCONegativeTraining, Tag("bco_negative")]
    | Annotated[ULMANegativeTraining, Tag("ulma_negative")]
    | Annotated[AltPOTraining, Tag("altpo")]
    | Annotated[PMPONegativeTraining, Tag("pmpo_negative")]
    | Annotated[DPOSelfTraining, Tag("dpo_self")]
    | Annotated[DPOTraining, Tag("dpo")]
    | Annotated[IPOTraining, Tag("ipo")]
    | Annotated[SLiCTraining, Tag("slic")]
    | Annotated[SimPOTraining, Tag("simpo")]
    | Annotated[SFTChosenTraining, Tag("sft_chosen")],
    Discriminator(objective_name),
]
"""The `training` section: which class it is decides its `objective`."""

assert len(get_args(get_args(TrainingConfig)[0])) == len(_CLASSES)
