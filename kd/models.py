"""Encoders that classify: from a hub id, a folder, a configuration or another model's layers.

An :class:`EncoderClassifier` is cheap to construct and loads when the class names are known, so
that a recipe is checked before gigabytes are read. This room knows no data, teacher or objective.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kd.configuration import dropout_of, read_config
from kd.errors import ConfigError, ModelError
from kd.layers import (
    check_same_classes,
    check_same_problem,
    fit_head,
    is_multi_label,
    keep_layers,
    stored_labels,
)
from kd.projections import PROJECTIONS, captured
from kd.shrink import Shrink, shrunk
from kd.types import Inputs, ModelInfo, Outputs
from kd.vocabulary import digest, load_tokenizer, quiet, reason, train_wordpiece

__all__ = ["EncoderClassifier"]


class EncoderClassifier(nn.Module):
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
        super().__init__()
        if (path is None) == (config is None):
            raise ConfigError("EncoderClassifier takes a path or a config: give exactly one.")
        if config is not None and "model_type" not in config:
            raise ConfigError("EncoderClassifier's config names no model_type: add it, e.g. bert.")
        if dropout is not None and not 0.0 <= dropout <= 1.0:
            raise ConfigError(f"EncoderClassifier.dropout is {dropout}: give 0 to 1.")
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
        self.path = path
        self.config = config
        self.tokenizer_path = tokenizer
        self.vocabulary_size = vocabulary_size
        self.keep_layers = keep_layers
        self.model_type = model_type
        self.revision = revision
        self.dropout = dropout
        self.shrink = shrink
        self.notes: list[str] = []
        """What `load` decided, a line each."""
        self.network: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.labels: tuple[str, ...] = ()

    def load(
        self,
        labels: Sequence[str] | None = None,
        texts: Iterable[str] = (),
        stored: Sequence[str] | None = None,
        fresh_head: bool = True,
        multi_label: bool = False,
    ) -> None:
        """Read or create the weights and the tokenizer; the model is then in train mode.

        A stored head whose class names are the wanted ones is kept and put in the wanted order,
        by name, whatever the case; any other head is made anew.

        Args:
            labels: Class names in the wanted order; null keeps the stored ones.
            texts: Corpus for a vocabulary that is trained here, and for ``shrink``.
            stored: Class names of the stored head, where the model itself does not say them.
            fresh_head: Whether a head may be made anew; a teacher's may not.
            multi_label: Whether a row may have several of the labels.

        Raises:
            ModelError: If there is no such model, model and tokenizer do not fit, or a new head
                would be needed where none may be.
        """
        with quiet():
            if self.path:
                network, tokenizer = self._from_path(fresh_head)
            else:
                network, tokenizer = self._from_config(texts)
        if labels is not None:
            names = tuple(stored or stored_labels(network.config))
            if len(names) != network.config.num_labels:
                raise ModelError(
                    f"{self._name} has {network.config.num_labels} classes, but label_names gives "
                    f"{len(names)}: {', '.join(names)}."
                )
            if not fresh_head:
                check_same_classes(self._name, names, tuple(labels))
                check_same_problem(self._name, network.config, multi_label)
            fit_head(network, names, tuple(labels), multi_label)
        if self.keep_layers is not None:
            network = keep_layers(network, self.keep_layers)
        if len(tokenizer) > network.config.vocab_size:
            raise ModelError(
                f"The tokenizer of {self._name} has {len(tokenizer)} tokens but the model's "
                f"embedding has {network.config.vocab_size}: they do not belong together."
            )
        if self.shrink is not None:
            with quiet():
                network, tokenizer, self.notes = shrunk(
                    network, tokenizer, list(texts), self.shrink
                )
        self.network = network.train()  # from_pretrained leaves it in eval mode
        self.tokenizer = tokenizer
        self.labels = stored_labels(network.config)

    @classmethod
    def from_folder(cls, folder: Path, weights: Mapping[str, Tensor]) -> EncoderClassifier:
        """Build a model from a folder's configuration and tokenizer, and given weights.

        Args:
            folder: What `describe` wrote.
            weights: By name in the Hugging Face model.

        Returns:
            The loaded model.

        Raises:
            ModelError: If the weights are not of this configuration.
        """
        model = cls(path=str(folder))
        config = read_config(str(folder), None, None)
        network: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        try:
            network.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ModelError(f"The weights do not fit {folder / 'config.json'}.") from error
        model.network, model.labels = network, stored_labels(config)
        model.tokenizer = load_tokenizer(str(folder), config)
        return model

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
        network = self.loaded
        if "attentions" in needs and network.config._attn_implementation != "eager":
            network.set_attn_implementation("eager")  # sdpa returns no probabilities
        accepted = dict(inputs)
        if "token_type_ids" in accepted and getattr(network.config, "type_vocab_size", 0) < 2:
            del accepted["token_type_ids"]
        fields = [field for field in PROJECTIONS if field in needs]
        with captured(network, fields) as projections:
            answer = network(
                **accepted,
                output_hidden_states="hidden_states" in needs,
                output_attentions="attentions" in needs,
            )
        layers = network.config.num_hidden_layers
        return Outputs(
            logits=answer.logits,
            hidden_states=_complete(answer, "hidden_states", layers + 1, needs),
            attentions=_complete(answer, "attentions", layers, needs),
            queries=projections.get("queries"),
            keys=projections.get("keys"),
            values=projections.get("values"),
            mask=inputs["attention_mask"],
        )

    @property
    def wants_texts(self) -> bool:
        """Whether `load` looks at the training texts."""
        return self.config is not None or self.shrink is not None

    @property
    def loaded(self) -> PreTrainedModel:
        """The Hugging Face model.

        Raises:
            ModelError: If `load` has not been called.
        """
        if self.network is None:
            raise ModelError(f"{self._name} is not loaded yet: call load() first.")
        return self.network

    @property
    def info(self) -> ModelInfo:
        """Sizes, class names and the digest of the vocabulary."""
        network = self.loaded
        assert self.tokenizer is not None
        return ModelInfo(
            labels=self.labels,
            parameters=sum(weight.numel() for weight in network.parameters()),
            layers=network.config.num_hidden_layers,
            width=network.config.hidden_size,
            heads=network.config.num_attention_heads,
            vocabulary=digest(self.tokenizer),
            multi_label=is_multi_label(network.config),
            tokens=network.config.vocab_size,
        )

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads at once."""
        network = self.loaded
        assert self.tokenizer is not None
        limit = int(getattr(network.config, "max_position_embeddings", 0) or 10**9)
        for name, module in network.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                # RoBERTa counts positions from padding_idx + 1
                limit -= 0 if module.padding_idx is None else module.padding_idx + 1
        return min(limit, int(self.tokenizer.model_max_length))

    def describe(self, folder: Path, max_length: int) -> None:
        """Write configuration and tokenizer, without the weights.

        Args:
            folder: Where to write.
            max_length: Tokens after which the tokenizer cuts, unless the model reads fewer.
        """
        assert self.tokenizer is not None
        self.loaded.config.architectures = [type(self.loaded).__name__]
        self.loaded.config.save_pretrained(folder)
        self.tokenizer.model_max_length = min(max_length, self.max_length)
        self.tokenizer.save_pretrained(folder)

    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer as a folder that ``transformers`` loads."""
        assert self.tokenizer is not None
        with quiet():
            self.loaded.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def _name(self) -> str:
        return self.path or f"the new {(self.config or {}).get('model_type')} model"

    def _from_path(self, fresh_head: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        assert self.path is not None
        config = read_config(self.path, self.model_type, self.revision)
        if self.dropout is not None:
            config.update(dropout_of(config, self.dropout))
        try:
            network, report = AutoModelForSequenceClassification.from_pretrained(
                self.path,
                config=config,
                revision=self.revision,
                dtype=torch.float32,  # the default is the file's own, which may be bfloat16
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported: see below
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(f"The weights of {self.path} do not load: {reason(error)}.") from error
        encoder = network.base_model_prefix + "."
        lost = {name for name, *_ in report["mismatched_keys"]}
        lost |= {name for name in report["missing_keys"] if name.startswith(encoder)}
        lost = {name for name in lost if not name.startswith(encoder + "pooler.")}  # head, to us
        if lost:
            raise ModelError(
                f"The weights of {self.path} are not those of a {config.model_type} as its "
                f"config.json has it: {min(lost)} is missing or has another shape."
            )
        if report["missing_keys"] and not fresh_head:
            raise ModelError(
                f"{self.path} has no trained classification head: fine-tune it first, with a "
                "recipe that has no teacher."
            )
        if self.tokenizer_path:
            return network, load_tokenizer(self.tokenizer_path)
        return network, load_tokenizer(self.path, config, self.revision)

    def _from_config(self, texts: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        values = dict(self.config or {})
        model_type = values.pop("model_type")
        if model_type not in CONFIG_MAPPING:
            raise ConfigError(
                f"EncoderClassifier's config has the unknown model_type {model_type}."
            )
        default = AutoConfig.for_model(model_type)
        source = inspect.getsource(type(default))  # which reads some older names too
        unknown = sorted(n for n in values if not hasattr(default, n) and f'"{n}"' not in source)
        if unknown:
            raise ConfigError(
                f"EncoderClassifier's config has {', '.join(unknown)}, which a {model_type} does "
                "not know: correct or remove it."
            )
        if self.tokenizer_path:
            tokenizer = load_tokenizer(self.tokenizer_path)
        else:
            tokenizer = train_wordpiece(texts, self.vocabulary_size)
        try:
            config = AutoConfig.for_model(
                model_type,
                **{"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **values},
            )
            if self.dropout is not None:
                config.update(dropout_of(config, self.dropout))
            network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ConfigError(
                f"EncoderClassifier's config makes no model: {reason(error)}."
            ) from error
        return network, tokenizer


def _complete(
    answer: Mapping[str, Any], field: str, count: int, needs: frozenset[str]
) -> tuple[Tensor, ...] | None:
    if field not in needs:
        return None
    states = answer.get(field) or ()
    if len(states) != count:
        raise ModelError(f"The model gave {len(states)} {field} where {count} were expected.")
    return tuple(states)
