"""Which layer of the student learns from which layer of the teacher.

Layers are counted from 1, as in the papers; hidden state 0 is the embeddings.
"""

from __future__ import annotations

from typing import Literal

from kd.errors import ConfigError
from kd.types import ModelInfo

__all__ = ["LayerMap", "check_same_length", "check_same_tokens", "pair_layers", "show_pairs"]

LayerMap = Literal["uniform", "last", "skip"] | dict[int, int]
"""A rule, or teacher layer by student layer."""


def pair_layers(
    where: str, layers: LayerMap, student: ModelInfo, teacher: ModelInfo
) -> tuple[tuple[int, int], ...]:
    """Return the pairs (student layer, teacher layer), counted from 1.

    With S and T layers: ``uniform`` pairs j with j·T/S, rounded (TinyBERT, arXiv:1909.10351,
    section 3); ``skip`` pairs j with every (T // S)-th layer and leaves out the student's last
    (PKD-skip, arXiv:1908.09355, section 3.2); ``last`` pairs the student's layers with the
    teacher's last S.

    Args:
        where: Name of the objective, for the message.
        layers: The rule, or teacher layer by student layer; 0 is the embeddings.
        student: The student.
        teacher: The teacher.

    Returns:
        At least one pair, by rising student layer.

    Raises:
        ConfigError: If the map does not fit the models.
    """
    few, many = student.layers, teacher.layers
    if isinstance(layers, dict):
        pairs = sorted(layers.items())
        if not pairs or any(not (0 <= s <= few and 0 <= t <= many) for s, t in pairs):
            raise ConfigError(
                f"{where}.layers is {layers}, but the student has layers 0 to {few} and the "
                f"teacher 0 to {many} (0 is the embeddings): map student layers to teacher layers."
            )
        return tuple(pairs)
    if few > many:
        raise ConfigError(
            f"{where}.layers={layers} needs a teacher of at least as many layers as the student: "
            f"{many} and {few}; give the pairs, such as {{1: 1}}."
        )
    if layers == "skip":
        if few < 2:
            raise ConfigError(
                f"{where}.layers=skip leaves out the student's last layer, and it has only one: "
                "use uniform or last."
            )
        return tuple((layer, layer * (many // few)) for layer in range(1, few))
    if layers == "last":
        return tuple((layer, many - few + layer) for layer in range(1, few + 1))
    # half up: Python rounds halves to even, which would map two layers to one
    return tuple((layer, (2 * layer * many + few) // (2 * few)) for layer in range(1, few + 1))


def show_pairs(pairs: tuple[tuple[int, int], ...]) -> str:
    """Return pairs of layers as the loss equation shows them: ``1←4,2←8``."""
    return ",".join(f"{student}←{teacher}" for student, teacher in pairs)


def check_same_tokens(where: str, student: ModelInfo, teacher: ModelInfo) -> None:
    """Refuse to compare token by token what was cut into other tokens.

    Args:
        where: Name of the objective, for the message.
        student: The student.
        teacher: The teacher.

    Raises:
        ConfigError: If the vocabularies differ.
    """
    if student.vocabulary != teacher.vocabulary:
        raise ConfigError(
            f"{where} compares token by token, but student and teacher have different "
            "vocabularies: give the student the teacher's tokenizer, or use an objective on "
            "logits or on the first token."
        )


def check_same_length(where: str, student: int, teacher: int) -> None:
    """Refuse to compare token by token what was cut at different lengths.

    Args:
        where: Name of the objective, for the message.
        student: Tokens, L, of the student's batch.
        teacher: Those of the teacher's.

    Raises:
        ConfigError: If they differ.
    """
    if student != teacher:
        raise ConfigError(
            f"{where} compares token by token, but student and teacher read texts of different "
            f"length ({student} and {teacher} tokens): give model and teacher the same max_length."
        )
