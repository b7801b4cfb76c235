"""A number with its uncertainty."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A point estimate and its 95 % interval.

    `n` counts independent units: values, or clusters (prompts) where several values share one. `value` is None where
    nothing was measured (n = 0) or the quantity is undefined; the interval is None where n is too small for one (n = 0,
    and for means n = 1).

    Example: `Estimate(0.41, 0.30, 0.52, 48).as_dict() == {"value": 0.41, "ci_low": 0.3, "ci_high": 0.52, "n": 48}`.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """True when the interval lies on one side of zero. An undefined interval excludes nothing."""
        if self.ci_low is None or self.ci_high is None:
            return False
        return self.ci_low > 0.0 or self.ci_high < 0.0

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: `value`, `ci_low`, `ci_high` (numbers or None) and `n`."""
        return asdict(self)


NOT_MEASURED = Estimate(None, None, None, 0)
