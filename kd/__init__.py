"""Distil a large text classifier into a small, fast one.

Public names load when they are first used, so that ``import kd`` costs nothing::

    from kd import Classifier

    Classifier.from_pretrained("runs/quickstart").predict(["I am very happy today!"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd.cache import CachedTeacher
    from kd.data.datamodule import TextDataModule
    from kd.data.sources import Source
    from kd.ensembles import EnsembleTeacher, OutOfFoldTeacher
    from kd.errors import ConfigError, DataError, KDError, ModelError, RunError
    from kd.inference import Classifier, Prediction
    from kd.models import EncoderClassifier
    from kd.module import DistillationModule
    from kd.objectives import (
        AttentionKD,
        ContrastiveKD,
        CosineKD,
        DecoupledKD,
        DistKD,
        EmbeddingKD,
        HardLabel,
        HiddenKD,
        JensenShannonKD,
        LogitKD,
        LogitMSE,
        MiniLMKD,
        Objective,
        PatientKD,
        RelationalKD,
        ReverseKD,
        Schedule,
        SimilarityKD,
    )
    from kd.shrink import Shrink
    from kd.teachers import ModelTeacher, Teacher
    from kd.types import Batch, ModelInfo, Outputs, Row

__all__ = [
    "AttentionKD",
    "Batch",
    "CachedTeacher",
    "Classifier",
    "ConfigError",
    "ContrastiveKD",
    "CosineKD",
    "DataError",
    "DecoupledKD",
    "DistKD",
    "DistillationModule",
    "EmbeddingKD",
    "EncoderClassifier",
    "EnsembleTeacher",
    "HardLabel",
    "HiddenKD",
    "JensenShannonKD",
    "KDError",
    "LogitKD",
    "LogitMSE",
    "MiniLMKD",
    "ModelError",
    "ModelInfo",
    "ModelTeacher",
    "Objective",
    "OutOfFoldTeacher",
    "Outputs",
    "PatientKD",
    "Prediction",
    "RelationalKD",
    "ReverseKD",
    "Row",
    "RunError",
    "Schedule",
    "Shrink",
    "SimilarityKD",
    "Source",
    "Teacher",
    "TextDataModule",
]

_ROOMS = {
    "kd.cache": ("CachedTeacher",),
    "kd.data.datamodule": ("TextDataModule",),
    "kd.data.sources": ("Source",),
    "kd.ensembles": (
        "EnsembleTeacher",
        "OutOfFoldTeacher",
    ),
    "kd.errors": (
        "ConfigError",
        "DataError",
        "KDError",
        "ModelError",
        "RunError",
    ),
    "kd.inference": (
        "Classifier",
        "Prediction",
    ),
    "kd.models": ("EncoderClassifier",),
    "kd.module": ("DistillationModule",),
    "kd.objectives": (
        "AttentionKD",
        "ContrastiveKD",
        "CosineKD",
        "DecoupledKD",
        "DistKD",
        "EmbeddingKD",
        "HardLabel",
        "HiddenKD",
        "JensenShannonKD",
        "LogitKD",
        "LogitMSE",
        "MiniLMKD",
        "Objective",
        "PatientKD",
        "RelationalKD",
        "ReverseKD",
        "Schedule",
        "SimilarityKD",
    ),
    "kd.shrink": ("Shrink",),
    "kd.teachers": (
        "ModelTeacher",
        "Teacher",
    ),
    "kd.types": (
        "Batch",
        "ModelInfo",
        "Outputs",
        "Row",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'kd' has no attribute {name!r}")
    return getattr(import_module(_ROOM_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
