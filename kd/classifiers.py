"""What every classifier of texts shares: where it comes from, what it is, how it is written.

A :class:`TextClassifier` is cheap to construct and loads when the class names are known, so that a
recipe is checked before gigabytes are read. This room knows no architecture, data or objective.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from kd.configuration import check_weights, dropout_of, read_config
from kd.errors import ConfigError, ModelError
from kd.layers import check_same_classes, check_same_problem, is_multi_label, stored_labels
from kd.projections import PROJECTIONS, captured
from kd.types import Inputs, ModelInfo
from kd.vocabulary import digest, load_tokenizer, quiet, reason, train_wordpiece

__all__ = ["TextClassifier"]

_SHORTEST = 3  # tokens of a text: the special ones, and one more


class TextClassifier(nn.Module):
    """A Hugging Face model that gives a text a class; subclasses say how.

    Args:
        path: Hub id, model folder or run reference to start from; null with ``config``.
        config: Configuration for new weights, as in a ``config.json``, with its ``model_type``.
        tokenizer: Hub id or folder of the tokenizer; null takes the one of ``path``, and with
            ``config`` trains WordPiece on the training texts.
        vocabulary_size: Upper limit of a vocabulary that is trained here.
        model_type: Family of a model whose ``config.json`` does not say it.
        revision: Branch, tag or commit on the hub.
        dropout: Dropout of hidden states and attention; null keeps the configuration's.

    Raises:
        ConfigError: If not exactly one of ``path`` and ``config`` is given, or ``dropout`` is not
            from 0 to 1.
    """

    architecture: ClassVar[Any]
    """The class of ``transformers`` that makes the network."""
    family: ClassVar[str]
    """A ``model_type`` to name in an error."""
    prefix: str = ""
    """What is put before a text that is to be classified."""
    explain_prefix: str = ""
    """What is put before a text whose label is to be explained."""

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        vocabulary_size: int = 8000,
        model_type: str | None = None,
        revision: str | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        if bool(path) == (config is not None):
            raise ConfigError(f"{kind} takes a path or a config: give exactly one.")
        if config is not None and "model_type" not in config:
            raise ConfigError(f"{kind}'s config names no model_type: add it, e.g. {self.family}.")
        if dropout is not None and not 0.0 <= dropout <= 1.0:
            raise ConfigError(f"{kind}.dropout is {dropout}: give 0 to 1.")
        self.path = path
        self.config = config
        self.tokenizer_path = tokenizer
        self.vocabulary_size = vocabulary_size
        self.model_type = model_type
        self.revision = revision
        self.dropout = dropout
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

        What was trained for the wanted class names is kept and put in the wanted order, by name,
        whatever the case; what was trained for others is made anew.

        Args:
            labels: Class names in the wanted order; null keeps the stored ones.
            texts: Corpus for a vocabulary that is trained here, and for ``shrink``.
            stored: Class names of the stored model, where it does not say them itself.
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
            if not fresh_head:
                check_same_classes(self._name, names, tuple(labels))
                check_same_problem(self._name, network.config, multi_label)
            self._fit(network, names, tuple(labels), multi_label)
        longest = tokenizer.model_max_length
        if not isinstance(longest, int | float) or longest < _SHORTEST:
            raise ModelError(
                f"The tokenizer_config.json of {self._name} has model_max_length={longest!r:.20}: "
                "correct it."
            )
        tokens = 1 + max(*tokenizer.get_vocab().values(), *tokenizer("a")["input_ids"])
        if tokens > network.config.vocab_size:
            raise ModelError(
                f"The tokenizer of {self._name} has {tokens} tokens but the model's "
                f"embedding has {network.config.vocab_size}: they do not belong together."
            )
        self._take(network, tokenizer)

    @classmethod
    def from_folder(cls, folder: Path, weights: Mapping[str, Tensor]) -> Self:
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
        network: PreTrainedModel = cls.architecture.from_config(config)
        try:  # assigned, and then tied where they are equal: T5 1.1 says tied, and is not
            network.load_state_dict({name: weights[name].clone() for name in weights}, assign=True)
        except RuntimeError as error:
            raise ModelError(f"The weights do not fit {folder / 'config.json'}.") from error
        with quiet():
            network.tie_weights(missing_keys=set(), recompute_mapping=False)
        model._take(network, load_tokenizer(str(folder), config))
        return model

    def explain(self, inputs: Inputs, targets: Inputs) -> Tensor:
        """Write rationales, where the model can write at all.

        Args:
            inputs: The texts, as the ``explain`` view reads them, `[B, L]`.
            targets: Their rationales, `[B, R]`.

        Returns:
            Logits `[B, R, V]` of each rationale token, given those before it.

        Raises:
            ModelError: If it cannot.
        """
        raise ModelError(f"{self._name} writes no rationales: take a Seq2SeqClassifier.")

    @property
    def wants_texts(self) -> bool:
        """Whether `load` looks at the training texts."""
        return self.config is not None

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
    def head(self) -> nn.Linear:
        """The last linear layer, which wants full precision."""
        raise TypeError(f"{type(self).__name__} does not implement head.")

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
        for weights in folder.glob("*.safetensors"):  # written for the owner's eyes alone
            weights.chmod((folder / "config.json").stat().st_mode)
        self.tokenizer.save_pretrained(folder)

    @property
    def _name(self) -> str:
        return self.path or f"the new {(self.config or {}).get('model_type')} model"

    def _fit(
        self,
        network: PreTrainedModel,
        names: tuple[str, ...],
        wanted: tuple[str, ...],
        multi_label: bool,
    ) -> None:
        """Let a network that knows the classes ``names`` answer with the wanted ones."""
        raise TypeError(f"{type(self).__name__} does not implement _fit.")

    def _take(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.network = network.train()  # from_pretrained leaves it in eval mode
        self.tokenizer = tokenizer
        self.labels = stored_labels(network.config)

    def _run(
        self, network: PreTrainedModel, inputs: Inputs, needs: frozenset[str]
    ) -> tuple[Any, dict[str, Any]]:
        """Return what an encoder answers, and the fields of `Outputs` beside the logits."""
        if "attentions" in needs and network.config._attn_implementation != "eager":
            self.loaded.set_attn_implementation("eager")  # sdpa returns no probabilities
        with captured(network, [field for field in PROJECTIONS if field in needs]) as projections:
            answer = network(
                **inputs,
                output_hidden_states="hidden_states" in needs,
                output_attentions="attentions" in needs,
            )
        layers = network.config.num_hidden_layers
        return answer, {
            "hidden_states": _complete(answer, "hidden_states", layers + 1, needs),
            "attentions": _complete(answer, "attentions", layers, needs),
            **projections,
            "mask": inputs["attention_mask"],
        }

    def _from_path(self, fresh_head: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        assert self.path is not None
        config = read_config(self.path, self.model_type, self.revision)
        if self.dropout is not None:
            config.update(dropout_of(config, self.dropout))
        try:
            check_weights(config, self.architecture, Path(self.path))
            network, report = self.architecture.from_pretrained(
                self.path,
                config=config,
                revision=self.revision,
                dtype=torch.float32,  # the default is the file's own, which may be bfloat16
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported: see below
                trust_remote_code=False,
            )
        except Exception as error:  # what hostile files raise has no common class
            raise ModelError(f"The weights of {self.path} do not load: {reason(error)}.") from error
        body = "" if network.base_model is network else network.base_model_prefix + "."
        lost = {name for name, *_ in report["mismatched_keys"]}
        lost |= {name for name in report["missing_keys"] if name.startswith(body)}
        lost = {name for name in lost if not name.startswith(body + "pooler.")}  # head, to us
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
        kind, values = type(self).__name__, dict(self.config or {})
        model_type = values.pop("model_type")
        if model_type not in CONFIG_MAPPING:
            raise ConfigError(f"{kind}'s config has the unknown model_type {model_type}.")
        default = AutoConfig.for_model(model_type)
        source = inspect.getsource(type(default))  # which reads some older names too
        unknown = sorted(n for n in values if not hasattr(default, n) and f'"{n}"' not in source)
        if unknown:
            raise ConfigError(
                f"{kind}'s config has {', '.join(unknown)}, which a {model_type} does "
                "not know: correct or remove it."
            )
        if self.tokenizer_path:
            tokenizer = load_tokenizer(self.tokenizer_path)
        else:
            tokenizer = train_wordpiece(texts, self.vocabulary_size)
        values = {"vocab_size": len(tokenizer), **self._special(tokenizer), **values}
        try:
            config = AutoConfig.for_model(model_type, **values)
            if self.dropout is not None:
                config.update(dropout_of(config, self.dropout))
            network = self.architecture.from_config(config, dtype=torch.float32)
        except Exception as error:  # what strange values raise has no common class
            raise ConfigError(f"{kind}'s config makes no model: {reason(error)}.") from error
        return network, tokenizer

    def _special(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
        """Return what a new configuration says of the tokenizer's special tokens."""
        return {"pad_token_id": tokenizer.pad_token_id}


def _complete(
    answer: Mapping[str, Any], field: str, count: int, needs: frozenset[str]
) -> tuple[Tensor, ...] | None:
    if field not in needs:
        return None
    states = answer.get(field) or ()
    if len(states) != count:
        raise ModelError(f"The model gave {len(states)} {field} where {count} were expected.")
    return tuple(states)
