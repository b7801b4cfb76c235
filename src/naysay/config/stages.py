"""The names of the stages, in their order."""

from typing import Literal, get_args

Stage = Literal["ingest", "sample", "score", "train", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
