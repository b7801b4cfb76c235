"""The lab: a world small enough to enumerate, in which every claim about D²O is checked with the library's own losses.

    naysay lab --out lab

One file a claim: bounds (a), pull and onpolicy (b), collapse (c), noise (d), variance (e), references (f). `world` and
`exact` hold what they share, `learning` trains in the world.
"""

from naysay.lab.finding import Finding
from naysay.lab.run import LabResult, run_lab, write_lab

__all__ = ["Finding", "LabResult", "run_lab", "write_lab"]
