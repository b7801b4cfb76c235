"""Estimates with intervals, and tests: numpy and scipy, and for agreement the extra `judge`. Deterministic by seed."""

from naysay.statistics.agreement import krippendorff_alpha
from naysay.statistics.estimate import NOT_MEASURED, Estimate
from naysay.statistics.intervals import wilson, zero_upper_bound
from naysay.statistics.paired import bootstrap_mean, bootstrap_ratio_mean, paired_proportion_change
from naysay.statistics.ranking import auc
from naysay.statistics.significance import HOLM_ABOVE, McNemar, holm, mcnemar
from naysay.statistics.win_rate import win_rate

__all__ = [
    "HOLM_ABOVE",
    "NOT_MEASURED",
    "Estimate",
    "McNemar",
    "auc",
    "bootstrap_mean",
    "bootstrap_ratio_mean",
    "holm",
    "krippendorff_alpha",
    "mcnemar",
    "paired_proportion_change",
    "wilson",
    "win_rate",
    "zero_upper_bound",
]
