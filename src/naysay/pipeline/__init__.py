"""The order of the stages, and how a run is done, skipped, continued, redone or taken over. Imports no torch itself."""

from naysay.pipeline.graph import StageModule
from naysay.pipeline.runner import Event, run_stages

__all__ = ["Event", "StageModule", "run_stages"]
