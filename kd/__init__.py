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
    from kd.data.augment import (
        OCR,
        Augmenter,
        Keyboard,
        Mixed,
        Spelling,
        WordCrop,
        WordDrop,
        WordSwap,
    )
    from kd.data.datamodule import TextDataModule
    from kd.data.generated import BackTranslation, Contextual
    from kd.data.sources import Source
    from kd.data.synonyms import Synonym
    from kd.data.variants import Augmentation
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
    "OCR",
    "AttentionKD",
    "Augmentation",
    "Augmenter",
    "BackTranslation",
    "Batch",
    "CachedTeacher",
    "Classifier",
    "ConfigError",
    "Contextual",
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
    "Keyboard",
    "LogitKD",
    "LogitMSE",
    "MiniLMKD",
    "Mixed",
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
    "Spelling",
    "Synonym",
    "Teacher",
    "TextDataModule",
    "WordCrop",
    "WordDrop",
    "WordSwap",
]

_ROOMS = {
    "kd.cache": ("CachedTeacher",),
    "kd.data.augment": (
        "OCR",
        "Augmenter",
        "Keyboard",
        "Mixed",
        "Spelling",
        "WordCrop",
        "WordDrop",
        "WordSwap",
    ),
    "kd.data.datamodule": ("TextDataModule",),
    "kd.data.generated": (
        "BackTranslation",
        "Contextual",
    ),
    "kd.data.sources": ("Source",),
    "kd.data.synonyms": ("Synonym",),
    "kd.data.variants": ("Augmentation",),
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
