"""Encoders that classify: from a hub id, a folder, a configuration or another model's layers.

:func:`choose_classifier` tells them from models that write, which are the next room's. This room
knows no data, teacher or objective.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from kd.budget import Shape, shape_of
from kd.classifiers import TextClassifier
from kd.configuration import read_config
from kd.errors import ConfigError, ModelError
from kd.layers import find_head, fit_head, keep_layers
from kd.seq2seq import Seq2SeqClassifier
from kd.shrink import Shrink, shrunk
from kd.types import Inputs, Outputs
from kd.vocabulary import quiet

__all__ = ["EncoderClassifier", "choose_classifier"]


class EncoderClassifier(TextClassifier):
    """A Hugging Face encoder with a classification head, of any family.

    Args:
        path: Hub id, model folder or run reference to start from; null with ``config``.
        config: Configuration for new weights, as in a ``config.json``, with its ``model_type``.
        tokenizer: Hub id or folder of the tokenizer; null takes the one of ``path``, and with
            ``config`` trains WordPiece on the training texts.
        vocabulary_size: Upper limit of a vocabulary that is trained here.
        keep_layers: Numbers of the transformer layers to keep, from 0; null keeps all.
        model_type: Family of a model whose ``config.json`` does not say it, such as ``bert``.
        revision: Branch, tag or commit on the hub.
        dropout: Dropout of hidden states and attention; null keeps the configuration's.
        shrink: How to make the student smaller than the model at ``path``; null keeps its size.

    Raises:
        ConfigError: If not exactly one of ``path`` and ``config`` is given, ``dropout`` is not from
            0 to 1, or ``shrink`` contradicts ``config`` or ``keep_layers``.
    """

    architecture = AutoModelForSequenceClassification
    family = "bert"

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        vocabulary_size: int = 8000,
        keep_layers: list[int] | None = None,
        model_type: str | None = None,
        revision: str | None = None,
        dropout: float | None = None,
        shrink: Shrink | None = None,
    ) -> None:
        super().__init__(path, config, tokenizer, vocabulary_size, model_type, revision, dropout)
        if shrink is not None and config is not None:
            raise ConfigError(
                "EncoderClassifier.shrink makes a student from a path: beside a config, give its "
                "sizes there."
            )
        if shrink is not None and shrink.has_budget and keep_layers is not None:
            raise ConfigError(
                "EncoderClassifier has keep_layers and a shrink with a budget, which chooses the "
                "layers: give one or the other."
            )
        self.keep_layers = keep_layers
        self.shrink = shrink
        self._chosen: Shape | None = None

    def keep_shape(self, folder: Path) -> None:
        """Have the layers of a model of this recipe: a budget would measure this machine anew."""
        if self.shrink is not None and self.shrink.has_budget:
            self._chosen = shape_of(read_config(str(folder), None, None))

    def load(
        self,
        labels: Sequence[str] | None = None,
        texts: Iterable[str] = (),
        stored: Sequence[str] | None = None,
        fresh_head: bool = True,
        multi_label: bool = False,
    ) -> None:
        """Read or create weights and tokenizer, as any classifier; then keep layers and shrink."""
        super().load(labels, texts, stored, fresh_head, multi_label)
        network, tokenizer = self.loaded, self.tokenizer
        assert tokenizer is not None
        if self.keep_layers is not None:
            network = keep_layers(network, self.keep_layers)
        if self.shrink is not None:
            with quiet():
                network, tokenizer, self.notes = shrunk(
                    network, tokenizer, list(texts), self.shrink, self._chosen
                )
        self._take(network, tokenizer)

    def forward(self, inputs: Inputs, needs: frozenset[str] = frozenset()) -> Outputs:
        """Answer a batch.

        Args:
            inputs: ``input_ids``, ``attention_mask`` `[B, L]` and perhaps ``token_type_ids``.
            needs: Names of optional fields of `Outputs` to fill.

        Returns:
            Logits `[B, C]` and the fields asked for.

        Raises:
            ModelError: If the model cannot give a field, or is not loaded.
        """
        network, accepted = self.loaded, dict(inputs)
        if "token_type_ids" in accepted and getattr(network.config, "type_vocab_size", 0) < 2:
            del accepted["token_type_ids"]
        answer, fields = self._run(network, accepted, needs)
        return Outputs(logits=answer.logits, **fields)

    @property
    def wants_texts(self) -> bool:
        """Whether `load` looks at the training texts."""
        return super().wants_texts or self.shrink is not None

    @property
    def head(self) -> nn.Linear:
        """The last linear layer, which gives the logits."""
        return find_head(self.loaded)

    def _fit(
        self,
        network: PreTrainedModel,
        names: tuple[str, ...],
        wanted: tuple[str, ...],
        multi_label: bool,
    ) -> None:
        if len(names) != network.config.num_labels:
            raise ModelError(
                f"{self._name} has {network.config.num_labels} classes, but label_names gives "
                f"{len(names)}: {', '.join(names)}."
            )
        fit_head(network, names, wanted, multi_label)


def choose_classifier(
    path: str | Path, model_type: str | None = None, revision: str | None = None
) -> type[TextClassifier]:
    """Tell by its configuration what kind of classifier a model is.

    Args:
        path: A folder or a hub id.
        model_type: Its family, where the configuration does not say it.
        revision: Branch, tag or commit on the hub.

    Returns:
        The class that loads it.

    Raises:
        ModelError: If there is no such model.
    """
    config = read_config(str(path), model_type, revision)
    has_head = "SequenceClassification" in str(config.architectures)
    return Seq2SeqClassifier if config.is_encoder_decoder and not has_head else EncoderClassifier
