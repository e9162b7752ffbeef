"""What computes an answer: PyTorch, or ONNX Runtime with weights of 32 or 8 bits.

Both read texts in batches of like length and give logits. ONNX Runtime needs neither torch nor
transformers, which are imported only for PyTorch. This room knows no training and no probability.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kd.errors import ConfigError, ModelError
from kd.layout import FILES, Facts, read_facts
from kd.texts import beginning

if TYPE_CHECKING:
    from tokenizers import Encoding

    from kd.classifiers import TextClassifier

__all__ = ["BackendName", "Model", "ONNXModel", "TorchModel"]

BackendName = Literal["torch", "onnx", "int8"]

_CHUNK = 4096  # texts tokenised at once: bounds the memory of the tokenizer's objects


class Model(Protocol):
    """A loaded model that answers texts with logits.

    Its attributes: ``backend``, ``labels`` in the order of the logits, ``multi_label``, and
    ``max_length``, the tokens after which a text is cut.
    """

    backend: BackendName
    labels: tuple[str, ...]
    multi_label: bool
    max_length: int

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int
    ) -> NDArray[np.float32]:
        """Return the logits of texts.

        Args:
            texts: N of them.
            pairs: Their second texts, or null.
            batch_size: Most texts that the model is given at once.

        Returns:
            `[N, C]`, in the order of the texts.
        """


class TorchModel:
    """A classifier in PyTorch, in eval mode, on the device where it lies.

    Args:
        classifier: Loaded.
        threads: Of the processor; null leaves PyTorch's choice. PyTorch has one for the process.
    """

    backend: BackendName = "torch"

    def __init__(self, classifier: TextClassifier, threads: int | None = None) -> None:
        from kd.layers import is_multi_label
        from kd.views import view_of

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self.classifier = classifier.eval()
        self.labels = classifier.labels
        self.multi_label = is_multi_label(classifier.loaded.config)
        self.max_length = classifier.max_length
        self._view = view_of(classifier, self.max_length)

    @classmethod
    def load(
        cls,
        path: str,
        threads: int | None = None,
        revision: str | None = None,
        model_type: str | None = None,
    ) -> TorchModel:
        """Load a model folder or a classifier of the hub.

        Args:
            path: Folder or hub id.
            threads: Of the processor.
            revision: Branch, tag or commit on the hub.
            model_type: Family of a model whose ``config.json`` does not say it.

        Returns:
            The model.

        Raises:
            ModelError: If there is none, or its head is untrained.
        """
        from kd.models import choose_classifier

        kind = choose_classifier(path, model_type, revision)
        classifier = kind(path=path, model_type=model_type, revision=revision)
        classifier.load(fresh_head=False)
        return cls(classifier, threads)

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int
    ) -> NDArray[np.float32]:
        """Return the logits of the texts, as :meth:`Model.logits` says."""
        import torch

        from kd.data.collate import EncodedRows, EvaluationBatches
        from kd.data.encode import encode
        from kd.types import Row

        found = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        if not texts:
            return found
        rows = [Row(n, text, pair=pairs[n] if pairs else None) for n, text in enumerate(texts)]
        data = EncodedRows(rows, {"student": encode(rows, self._view)})
        device = next(self.classifier.parameters()).device
        with torch.inference_mode():
            for batch in EvaluationBatches(data, batch_size):
                answer = self.classifier(batch.to(device).views["student"]).logits
                found[batch.index.numpy()] = answer.float().cpu().numpy()
        return found


class ONNXModel:
    """An exported folder in ONNX Runtime, on the processor.

    Args:
        folder: What `export` wrote.
        backend: ``onnx``, or ``int8`` for weights of 8 bits.
        threads: Of the processor; null is one for each core.

    Raises:
        ConfigError: If ONNX Runtime is not installed, or there is no such backend.
        ModelError: If the folder has no such model, or it does not load.
    """

    def __init__(
        self, folder: Path, backend: Literal["onnx", "int8"] = "onnx", threads: int | None = None
    ) -> None:
        if backend not in FILES:
            raise ConfigError(f"There is no backend {backend!r}: choose torch, onnx or int8.")
        facts = read_facts(folder)
        file = folder / FILES[backend]
        if facts is None or not os.path.isfile(file):
            raise ModelError(
                f"{folder} has no {FILES[backend]}: make it by `kd export`, or take the backend "
                "torch."
            )
        self.backend: BackendName = backend
        self.labels = facts.labels
        self.multi_label = facts.multi_label
        self.max_length = facts.max_length
        self._prefix = facts.prefix
        self._inputs = facts.inputs
        self._encode, self._padding = _tokenizer(folder, facts)
        self._run = _session(file, len(facts.labels), threads)

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int
    ) -> NDArray[np.float32]:
        """Return the logits of the texts, as :meth:`Model.logits` says."""
        found = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        for first in range(0, len(texts), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            encodings = self._encode(self._cut(texts[chunk], pairs and pairs[chunk]))
            for places in _batches([len(one) for one in encodings], batch_size):
                batch = [encodings[place] for place in places]
                found[first + places] = self._run(self._pad(batch))
        return found

    def _cut(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Any]:
        firsts = [beginning(self._prefix + text, self.max_length) for text in texts]
        if pairs is None:
            return firsts
        return list(zip(firsts, [beginning(pair, self.max_length) for pair in pairs], strict=True))

    def _pad(self, batch: list[Encoding]) -> dict[str, NDArray[np.int64]]:
        """Return what the model reads of some texts, as wide as the longest."""
        shape = len(batch), max(map(len, batch))
        read = {name: np.zeros(shape, dtype=np.int64) for name in self._inputs}
        read["input_ids"].fill(self._padding)
        for row, one in enumerate(batch):
            size = len(one)
            read["input_ids"][row, :size] = one.ids
            read["attention_mask"][row, :size] = 1
            if "token_type_ids" in read:
                read["token_type_ids"][row, :size] = one.type_ids
        return read


def _tokenizer(folder: Path, facts: Facts) -> tuple[Callable[[list[Any]], list[Encoding]], int]:
    """Return what tokenises texts or pairs as transformers does, and the id of padding."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        padding = json.loads((folder / "tokenizer_config.json").read_bytes()).get("pad_token")
    except Exception as error:  # tokenizers raises no narrower kind
        raise ModelError(f"The tokenizer of {folder} does not load: export it again.") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(facts.max_length)
    return tokenizer.encode_batch_fast, tokenizer.token_to_id(str(padding)) or 0


def _session(
    file: Path, classes: int, threads: int | None
) -> Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "ONNX Runtime is not installed: pip install onnxruntime, or take the backend torch."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds, none of them public
        raise ModelError(f"{file} does not load in ONNX Runtime: export it again.") from error

    def run(inputs: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        try:
            found: NDArray[np.float32] = session.run(["logits"], inputs)[0]
            return found.reshape(len(inputs["input_ids"]), classes)
        except Exception as error:  # likewise
            raise ModelError(
                f"{file} does not answer as kd.json and its tokenizer say: export it again."
            ) from error

    return run


def _batches(lengths: Sequence[int], size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the places of texts of like length."""
    if len(lengths) <= size:  # one batch, in any order
        yield np.arange(len(lengths))
        return
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
