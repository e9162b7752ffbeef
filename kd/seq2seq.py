"""Models that write, used as classifiers: T5 and its kin score the words of each class.

What is scored is not generated, so the answer is a distribution over the classes as any head's is,
and every objective on logits applies. This room knows no data, teacher or objective.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from kd.classifiers import TextClassifier
from kd.errors import ConfigError, ModelError
from kd.types import UNLABELLED, Inputs, Outputs

__all__ = ["Seq2SeqClassifier"]

_PREFIXES = {"prefix": "predict: ", "explain_prefix": "explain: "}


class Seq2SeqClassifier(TextClassifier):
    """A Hugging Face encoder-decoder, such as T5, that answers with the words of a class.

        logits[c] = log p(words of c | text) = Σ log p(token | text, tokens before it)

    The end of the words counts as a token. It can write rationales too (Hsieh et al. 2023,
    Distilling Step-by-Step), which a prefix tells apart. Near: `EncoderClassifier`, which is
    faster but cannot write.

    Args:
        path: Hub id, model folder or run reference to start from; null with ``config``.
        config: Configuration for new weights, as in a ``config.json``, with its ``model_type``.
        tokenizer: Hub id or folder of the tokenizer; null takes the one of ``path``, and with
            ``config`` trains WordPiece on the training texts.
        vocabulary_size: Upper limit of a vocabulary that is trained here.
        model_type: Family of a model whose ``config.json`` does not say it, such as ``t5``.
        revision: Branch, tag or commit on the hub.
        dropout: Dropout of hidden states and attention; null keeps the configuration's.
        prefix: What is put before a text that is to be classified; null keeps what the model was
            trained with, which is ``predict: `` at first.
        explain_prefix: What is put before a text whose label is to be explained; null likewise,
            ``explain: `` at first.
        verbalisers: The words that stand for a class, by class name; null, or a class that is left
            out, keeps what the model was trained with, which is the class name at first.

    Raises:
        ConfigError: If not exactly one of ``path`` and ``config`` is given, or ``dropout`` is not
            from 0 to 1.
    """

    architecture = AutoModelForSeq2SeqLM
    family = "t5"
    targets: Tensor

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        vocabulary_size: int = 8000,
        model_type: str | None = None,
        revision: str | None = None,
        dropout: float | None = None,
        prefix: str | None = None,
        explain_prefix: str | None = None,
        verbalisers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(path, config, tokenizer, vocabulary_size, model_type, revision, dropout)
        given = {"prefix": prefix, "explain_prefix": explain_prefix}
        self.given = {option: value for option, value in given.items() if value is not None}
        self.verbalisers = verbalisers or {}

    def load(
        self,
        labels: Sequence[str] | None = None,
        texts: Iterable[str] = (),
        stored: Sequence[str] | None = None,
        fresh_head: bool = True,
        multi_label: bool = False,
    ) -> None:
        """Read or create weights and tokenizer, as any classifier; a class has words, no head."""
        prefixes = {**_PREFIXES, **self.given}
        words = [*prefixes.values(), *(labels or ()), *self.verbalisers.values()]
        super().load(labels, chain(texts, words), stored, fresh_head, multi_label)

    def forward(self, inputs: Inputs, needs: frozenset[str] = frozenset()) -> Outputs:
        """Answer a batch: the encoder runs once, the decoder once over all classes.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` `[B, L]`, the prefix included.
            needs: Names of optional fields of `Outputs` to fill, which are the encoder's.

        Returns:
            Log-likelihoods of the classes' words as logits `[B, C]`, and the fields asked for.

        Raises:
            ModelError: If the model cannot give a field, or is not loaded.
        """
        states, fields = self._encode(inputs, needs)
        rows, classes = states.shape[0], self.targets.shape[0]  # len() fixes the number in a trace
        targets = self.targets.repeat(rows, 1)
        logits = self._decode(
            states.repeat_interleave(classes, dim=0),
            inputs["attention_mask"].repeat_interleave(classes, dim=0),
            targets,
        )
        # by hand, because cross_entropy of single tokens does not convert to ONNX
        likely = logits.float().log_softmax(dim=-1)
        likely = likely.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        likely = likely.masked_fill(targets == UNLABELLED, 0.0)
        return Outputs(logits=likely.view(rows, classes, -1).sum(dim=-1), **fields)

    def explain(self, inputs: Inputs, targets: Inputs) -> Tensor:
        """Write rationales, each token given those before it.

        Args:
            inputs: The texts, as the ``explain`` view reads them, `[B, L]`.
            targets: Their rationales, `[B, R]`.

        Returns:
            Logits `[B, R, V]` of each rationale token.
        """
        states, _ = self._encode(inputs, frozenset())
        return self._decode(states, inputs["attention_mask"], targets["input_ids"])

    @property
    def head(self) -> nn.Linear:
        """The last linear layer, which gives the logits of tokens."""
        head: nn.Linear = self.loaded.get_output_embeddings()
        return head

    def _encode(self, inputs: Inputs, needs: frozenset[str]) -> tuple[Tensor, dict[str, Any]]:
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        answer, fields = self._run(self.loaded.get_encoder(), read, needs)
        return answer.last_hidden_state, fields

    def _decode(self, states: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Return the logits of target tokens; what stands after a row's end changes none before."""
        config = self.loaded.config
        start = getattr(config, "decoder_start_token_id", None)
        before = targets.roll(1, dims=1).masked_fill(targets.roll(1, dims=1) == UNLABELLED, 0)
        before[:, 0] = config.pad_token_id if start is None else start
        logits: Tensor = self.loaded(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=before,
            use_cache=False,
        ).logits
        return logits

    def _fit(
        self,
        network: PreTrainedModel,
        names: tuple[str, ...],
        wanted: tuple[str, ...],
        multi_label: bool,
    ) -> None:
        if multi_label:
            raise ModelError(
                f"{self._name} gives a row one class, but data.multi_label is true: take an "
                "EncoderClassifier."
            )
        unknown = sorted(set(self.verbalisers) - set(wanted))
        if unknown:
            raise ConfigError(
                f"Seq2SeqClassifier.verbalisers names {', '.join(unknown)}, but the data's classes "
                f"are {', '.join(wanted)}: correct or remove it."
            )
        config = network.config
        known = {name: name for name in names} | getattr(config, "verbalisers", {})
        known = {name.casefold(): words for name, words in known.items()} | known
        known |= self.verbalisers
        # the exported folder says it all: who loads it gives no options
        config.verbalisers = {
            name: known.get(name, known.get(name.casefold(), name)) for name in wanted
        }
        for option, default in _PREFIXES.items():
            setattr(config, option, self.given.get(option, getattr(config, option, default)))
        config.id2label = dict(enumerate(wanted))  # num_labels follows
        config.label2id = {name: index for index, name in enumerate(wanted)}

    def _take(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super()._take(network, tokenizer)
        config = network.config
        if not hasattr(config, "verbalisers"):
            raise ModelError(
                f"{self._name} was not trained to classify: fine-tune it first, with a recipe that "
                "has no teacher."
            )
        self.prefix, self.explain_prefix = config.prefix, config.explain_prefix
        words = [config.verbalisers[label] for label in self.labels]
        rows = tokenizer(words)["input_ids"]
        for place, row in enumerate(rows):
            if row in rows[:place]:
                raise ConfigError(
                    f"{self._name} reads the words of the classes {self.labels[rows.index(row)]} "
                    f"and {self.labels[place]} alike: set other verbalisers in Seq2SeqClassifier."
                )
        padded = nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=UNLABELLED
        )
        self.register_buffer("targets", padded, persistent=False)

    def _special(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
        end = tokenizer.eos_token_id
        return {
            **super()._special(tokenizer),
            "eos_token_id": tokenizer.sep_token_id if end is None else end,
            "decoder_start_token_id": tokenizer.pad_token_id,
        }
