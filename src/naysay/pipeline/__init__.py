"""The order of the stages, and how a run is done, skipped, continued, redone or taken over. Imports no torch itself."""

from naysay.pipeline.graph import StageModule
from naysay.pipeline.rescoring import rescore
from naysay.pipeline.runner import Event, run_stages

__all__ = ["Event", "StageModule", "rescore", "run_stages"]
