"""How numbers are written: one place, so that the verdict, the tables and the command line agree."""

from collections.abc import Mapping
from typing import Any, Literal

Style = Literal["signed", "plain", "percent", "points", "pts"]
MISSING = "not measured"


def number(value: float | None, style: Style = "signed", digits: int = 3) -> str:
    """One value: `+0.052` (signed), `0.031` (plain), `4.2 %` (percent), `+4.2 points` or `+4.2 pts` (of percent)."""
    if value is None:
        return MISSING
    if style == "percent":
        return f"{100 * value:.1f} %"
    if style in ("points", "pts"):
        return f"{_no_negative_zero(100 * value, 1):+.1f} {style}"
    return f"{_no_negative_zero(value, digits):{'+' if style == 'signed' else ''}.{digits}f}"


def interval(estimate: Mapping[str, Any] | None, style: Style = "signed", digits: int = 3) -> str:
    """The 95 % interval: `[+0.031, +0.074]`, without a unit, or an empty string where there is none."""
    if estimate is None or estimate["ci_low"] is None or estimate["ci_high"] is None:
        return ""
    low, high = (number(estimate[side], style, digits) for side in ("ci_low", "ci_high"))
    return f"[{_bare(low)}, {_bare(high)}]"


def with_interval(estimate: Mapping[str, Any] | None, style: Style = "signed", digits: int = 3) -> str:
    """Value and interval: `+0.052 [+0.031, +0.074]`."""
    if estimate is None:
        return MISSING
    return f"{number(estimate['value'], style, digits)} {interval(estimate, style, digits)}".rstrip()


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 05 s` or `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _bare(text: str) -> str:
    return text.removesuffix(" %").removesuffix(" points").removesuffix(" pts")


def _no_negative_zero(value: float, digits: int) -> float:
    return round(value, digits) + 0.0
