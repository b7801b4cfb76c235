"""The report of a run: the verdict, report.html and summary.json."""

from naysay.reporting.verdict import Verdict, decide

__all__ = ["Verdict", "decide"]
