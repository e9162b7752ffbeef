"""Every error that `kd` raises for a user's sake, as one tree.

::

    KDError
    ├── ConfigError   a value in the recipe or on the command line
    ├── DataError     a file, a column, a row
    ├── ModelError    a model folder, its tokenizer, its labels
    └── RunError      a run directory, a checkpoint, an export

A message is one sentence: what is wrong, where, and what to do. The command line prints it without
a traceback and exits with 2. This room knows nothing else of the package.
"""

__all__ = ["ConfigError", "DataError", "KDError", "ModelError", "RunError"]


class KDError(Exception):
    """Base of all errors that tell the user what to change."""


class ConfigError(KDError):
    """A value in the recipe or on the command line cannot work."""


class DataError(KDError):
    """A data file, split, column or row cannot be used."""


class ModelError(KDError):
    """A model folder, its tokenizer or its labels cannot be used."""


class RunError(KDError):
    """A run directory, checkpoint or export cannot be read or written."""
