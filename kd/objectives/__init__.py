"""The terms that a loss can be made of; each file is one kind of signal."""

from kd.objectives.attention import (
    AttentionKD,
    MiniLMKD,
    attention_kl,
    attention_mse,
    attention_scores,
)
from kd.objectives.base import Objective
from kd.objectives.distributions import (
    DecoupledKD,
    DistKD,
    decoupled_kl,
    inter_class_distance,
    intra_class_distance,
)
from kd.objectives.evidence import (
    EvidenceKD,
    RationaleEmbeddingKD,
    RationaleWordsKD,
    evidence_cross_entropy,
    rationale_words,
)
from kd.objectives.hidden import (
    CosineKD,
    EmbeddingKD,
    HiddenKD,
    PatientKD,
    masked_cosine,
    masked_mse,
    patient_distance,
)
from kd.objectives.labels import HardLabel, masked_binary_cross_entropy, masked_cross_entropy
from kd.objectives.layers import LayerMap
from kd.objectives.logits import (
    JensenShannonKD,
    LogitKD,
    LogitMSE,
    ReverseKD,
    logit_squared_error,
    softened_jensen_shannon,
    softened_kl,
    softened_reverse_kl,
)
from kd.objectives.rationale import (
    PrivilegedKD,
    RationaleLM,
    RDrop,
    rationale_weights,
    symmetric_kl,
    token_cross_entropy,
)
from kd.objectives.relation import (
    ContrastiveKD,
    RelationalKD,
    SimilarityKD,
    contrastive_loss,
    relational_angle,
    relational_distance,
    similarity_distance,
)
from kd.objectives.schedules import Schedule

__all__ = [
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
    "LayerMap",
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
    "attention_kl",
    "attention_mse",
    "attention_scores",
    "contrastive_loss",
    "decoupled_kl",
    "evidence_cross_entropy",
    "inter_class_distance",
    "intra_class_distance",
    "logit_squared_error",
    "masked_binary_cross_entropy",
    "masked_cosine",
    "masked_cross_entropy",
    "masked_mse",
    "patient_distance",
    "rationale_weights",
    "rationale_words",
    "relational_angle",
    "relational_distance",
    "similarity_distance",
    "softened_jensen_shannon",
    "softened_kl",
    "softened_reverse_kl",
    "symmetric_kl",
    "token_cross_entropy",
]
