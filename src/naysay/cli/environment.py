"""What is set before transformers is imported, and what naysay's own log lines look like."""

import logging
import os
import sys
import warnings

_ALWAYS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare_environment(*, online: bool, quiet: bool) -> None:
    """Offline unless `online`; a variable that the user exported is kept, but a flag is stronger."""
    for name, value in _ALWAYS.items():
        os.environ.setdefault(name, value)
    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"
    else:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # peft asks transformers 5 by names that it will drop in version 6; the user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    if quiet:
        os.environ["TTY_COMPATIBLE"] = "0"  # rich then draws no progress bars
    logger = logging.getLogger("naysay")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not any(isinstance(handler, _StderrLines) for handler in logger.handlers):
        logger.addHandler(_StderrLines())


class _StderrLines(logging.Handler):
    """One line a record on whatever stderr is now: rich replaces it while a progress bar is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"naysay: {record.getMessage()}\n")
