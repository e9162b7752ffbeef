"""How a model reads rows: its tokenizer, its limit, its prefix, and what it is shown.

This room knows models and views, no rows and no role.
"""

from __future__ import annotations

from kd.classifiers import TextClassifier
from kd.data.encode import Reads, View

__all__ = ["view_of"]


def view_of(model: TextClassifier, max_length: int, reads: Reads = "text") -> View:
    """Return how a loaded model reads rows.

    Args:
        model: The model.
        max_length: Tokens after which a text is cut, unless the model reads fewer; with a
            rationale behind it there may be twice as many, within the same limit.
        reads: What of a row it is shown.

    Returns:
        The view.

    Raises:
        ModelError: If the model is not loaded.
    """
    limit = model.max_length
    assert model.tokenizer is not None
    return View(
        model.tokenizer,
        min(max_length, limit),
        model.info.vocabulary,
        model.prefix,
        reads,
        room=min(2 * max_length, limit),
    )
