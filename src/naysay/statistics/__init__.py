"""Estimates with intervals. numpy and scipy only; every function is deterministic by its seed."""

from naysay.statistics.estimate import NOT_MEASURED, Estimate
from naysay.statistics.intervals import wilson
from naysay.statistics.paired import bootstrap_mean, bootstrap_ratio_mean, paired_proportion_change

__all__ = [
    "NOT_MEASURED",
    "Estimate",
    "bootstrap_mean",
    "bootstrap_ratio_mean",
    "paired_proportion_change",
    "wilson",
]
