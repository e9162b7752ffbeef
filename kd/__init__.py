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
    from kd.classifiers import TextClassifier
    from kd.data.annotations import Rationales
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
    from kd.errors import ConfigError, DataError, KDError, ModelError, PauseError, RunError
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
        EvidenceKD,
        HardLabel,
        HiddenKD,
        JensenShannonKD,
        LogitKD,
        LogitMSE,
        MiniLMKD,
        Objective,
        PatientKD,
        PrivilegedKD,
        RationaleEmbeddingKD,
        RationaleLM,
        RationaleWordsKD,
        RDrop,
        RelationalKD,
        ReverseKD,
        Schedule,
        SimilarityKD,
    )
    from kd.rationales.annotators import Annotator, Question, Reply
    from kd.rationales.api import APIAnnotator
    from kd.rationales.imported import ImportedAnnotator
    from kd.rationales.local import LocalAnnotator
    from kd.rationales.prompts import Prompt
    from kd.seq2seq import Seq2SeqClassifier
    from kd.shrink import Shrink
    from kd.teachers import AnnotationTeacher, ModelTeacher, Teacher
    from kd.types import Annotation, Batch, ModelInfo, Outputs, Row

__all__ = [
    "OCR",
    "APIAnnotator",
    "Annotation",
    "AnnotationTeacher",
    "Annotator",
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
    "EvidenceKD",
    "HardLabel",
    "HiddenKD",
    "ImportedAnnotator",
    "JensenShannonKD",
    "KDError",
    "Keyboard",
    "LocalAnnotator",
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
    "PauseError",
    "Prediction",
    "PrivilegedKD",
    "Prompt",
    "Question",
    "RDrop",
    "RationaleEmbeddingKD",
    "RationaleLM",
    "RationaleWordsKD",
    "Rationales",
    "RelationalKD",
    "Reply",
    "ReverseKD",
    "Row",
    "RunError",
    "Schedule",
    "Seq2SeqClassifier",
    "Shrink",
    "SimilarityKD",
    "Source",
    "Spelling",
    "Synonym",
    "Teacher",
    "TextClassifier",
    "TextDataModule",
    "WordCrop",
    "WordDrop",
    "WordSwap",
]

_ROOMS = {
    "kd.cache": ("CachedTeacher",),
    "kd.classifiers": ("TextClassifier",),
    "kd.data.annotations": ("Rationales",),
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
        "PauseError",
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
        "EvidenceKD",
        "HardLabel",
        "HiddenKD",
        "JensenShannonKD",
        "LogitKD",
        "LogitMSE",
        "MiniLMKD",
        "Objective",
        "PatientKD",
        "PrivilegedKD",
        "RDrop",
        "RationaleEmbeddingKD",
        "RationaleLM",
        "RationaleWordsKD",
        "RelationalKD",
        "ReverseKD",
        "Schedule",
        "SimilarityKD",
    ),
    "kd.rationales.annotators": (
        "Annotator",
        "Question",
        "Reply",
    ),
    "kd.rationales.api": ("APIAnnotator",),
    "kd.rationales.imported": ("ImportedAnnotator",),
    "kd.rationales.local": ("LocalAnnotator",),
    "kd.rationales.prompts": ("Prompt",),
    "kd.seq2seq": ("Seq2SeqClassifier",),
    "kd.shrink": ("Shrink",),
    "kd.teachers": (
        "AnnotationTeacher",
        "ModelTeacher",
        "Teacher",
    ),
    "kd.types": (
        "Annotation",
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
