"""Every failure that naysay explains to its user.

Each class is also the standard-library type that it replaces, so that `except ValueError` in a caller's code goes on
working. A message is one line: what was expected, what was found, where, and what to do.
"""


class NaysayError(Exception):
    """Base of all errors that naysay raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 2


class ConfigError(NaysayError, ValueError):
    """A setting is unknown, impossible, or contradicts another one."""


class DataError(NaysayError, ValueError):
    """An input file or a row cannot be used."""


class InputNotFoundError(NaysayError, FileNotFoundError):
    """A file or a directory that the user named does not exist."""


class ModelError(NaysayError, ValueError):
    """A model, tokenizer, adapter or chat template cannot be used as asked."""


class NonFiniteLogitsError(ModelError):
    """A model's scores of the next token are NaN or infinite, so nothing can be drawn from it."""


class ConversationError(ModelError):
    """The model's chat template refuses one conversation; others may do."""


class RunDirectoryError(NaysayError, RuntimeError):
    """A run directory is locked, belongs to another config, or lacks what a stage needs."""


class StorageError(NaysayError, OSError):
    """Nothing could be written (disk full, no permission). What was there before is intact."""


class WorkerError(NaysayError, RuntimeError):
    """A process that naysay started for a part of the work ended before it was done, e.g. for want of memory."""

    exit_code = 1


class ServerError(NaysayError, RuntimeError):
    """A server that was asked over HTTP cannot be used: unreachable, refusing, or failing again and again."""


class ReferenceMismatchError(NaysayError, RuntimeError):
    """A cached reference log-prob does not belong to the reference in use, or its audit failed."""


class NonFiniteLossError(NaysayError, ArithmeticError):
    """The loss became NaN or infinite; training stopped before the optimizer step."""

    exit_code = 1


def missing_extra(name: str) -> str:
    """What to do where a package of an extra is missing: the end of a message.

    Example: `missing_extra("judge")`
    """
    return f"run in naysay's checkout: pip install -c constraints.txt -e '.[{name}]'"
