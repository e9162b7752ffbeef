"""Every error that `kd` raises for a user's sake, as one tree.

::

    KDError
    ├── ConfigError   a value in the recipe or on the command line
    ├── DataError     a file, a column, a row
    ├── ModelError    a model folder, its tokenizer, its labels
    ├── RunError      a run directory, a checkpoint, an export
    └── PauseError    work that stopped cleanly, and that the same command continues

A message is one sentence: what is wrong, where, and what to do. The command line prints it without
a traceback and exits with 2, or with 75 (try again later) for a pause. This room knows nothing else
of the package.
"""

__all__ = ["ConfigError", "DataError", "KDError", "ModelError", "PauseError", "RunError"]


class KDError(Exception):
    """Base of all errors that tell the user what to change."""

    exit_code = 2


class ConfigError(KDError):
    """A value in the recipe or on the command line cannot work."""


class DataError(KDError):
    """A data file, split, column or row cannot be used."""


class ModelError(KDError):
    """A model folder, its tokenizer or its labels cannot be used."""


class RunError(KDError):
    """A run directory, checkpoint or export cannot be read or written."""


class PauseError(KDError):
    """Work stopped before its end, nothing is lost, and the same command continues it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
