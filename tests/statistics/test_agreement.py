"""Agreement of judges."""

import sys

import numpy as np
import pytest

from naysay.errors import ConfigError
from naysay.statistics import NOT_MEASURED, krippendorff_alpha

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section D: 4 observers, 12 units, missing data.
OBSERVERS = ("123321412***", "1233224125*3", "*3332342251*", "12332441251*")


def labels(rows: tuple[str, ...]) -> list[list[str | None]]:
    return [[None if item == "*" else item for item in row] for row in rows]


def test_published_worked_example() -> None:
    pytest.importorskip("krippendorff", reason="comes with the extra naysay[judge]")
    found = krippendorff_alpha(labels(OBSERVERS))
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.n == 11
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low < 0.743 < found.ci_high


def test_perfect_chance_and_opposite_agreement() -> None:
    pytest.importorskip("krippendorff", reason="comes with the extra naysay[judge]")
    rng = np.random.default_rng(0)
    one, other = ([str(item) for item in rng.integers(0, 2, 400)] for _ in range(2))
    assert krippendorff_alpha([one, one]).value == 1.0
    by_chance = krippendorff_alpha([one, other])
    assert not by_chance.excludes_zero
    opposite = krippendorff_alpha([one, ["1" if item == "0" else "0" for item in one]])
    assert opposite.value is not None
    assert opposite.value < -0.9


def test_without_variation_it_is_undefined_and_without_pairs_not_measured() -> None:
    found = krippendorff_alpha([["safe"] * 5, ["safe"] * 5])
    assert (found.value, found.ci_low, found.n) == (None, None, 5)
    assert krippendorff_alpha([["a", None], [None, "b"]]) == NOT_MEASURED
    assert krippendorff_alpha([[], []]) == NOT_MEASURED


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '\.\[judge\]'"):
        krippendorff_alpha([["a", "b"], ["a", "a"]])
