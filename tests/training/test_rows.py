"""The weight of accepted answers among the anchors."""

from fractions import Fraction

import pytest

from naysay.training.rows import multiplicities


@pytest.mark.parametrize("own", [1, 4, 11])
@pytest.mark.parametrize("accepted", [1, 2, 3])
@pytest.mark.parametrize("share", [0.05, 0.25, 1 / 3, 0.5, 0.8, 0.95])
def test_accepted_answers_have_the_share_that_was_asked_for(own, accepted, share):
    own_times, accepted_times = multiplicities(own, accepted, share)
    weight = Fraction(accepted * accepted_times, own * own_times + accepted * accepted_times)
    assert float(weight) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(("share", "found"), [(0.001, Fraction(1, 20)), (0.999, Fraction(19, 20))])
def test_a_share_is_at_least_a_twentieth_of_either_side(share, found):
    own_times, accepted_times = multiplicities(4, 1, share)
    assert Fraction(accepted_times, 4 * own_times + accepted_times) == found


def test_without_accepted_answers_or_a_share_the_own_samples_stand_alone():
    assert multiplicities(4, 0, 0.5) == multiplicities(4, 2, 0.0) == (1, 0)
    assert multiplicities(4, 1, 0.5) == (1, 4)
