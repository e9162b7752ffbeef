"""From PyTorch to ONNX: a classifier as one file for ONNX Runtime, with weights of 32 or 8 bits.

This room knows models, no run and no data.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from kd.classifiers import TextClassifier
from kd.errors import ModelError
from kd.types import Outputs

__all__ = ["convert", "quantise"]

_LARGEST = 2_000_000_000  # bytes; protobuf ends at 2 GiB, and the graph needs some of them
_AXES = {0: "batch", 1: "length"}


class _Positional(nn.Module):
    """A classifier whose inputs come one by one, and that answers with its logits alone."""

    def __init__(self, model: TextClassifier, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        answer: Outputs = self.model(dict(zip(self.names, inputs, strict=True)))
        return answer.logits


def convert(model: TextClassifier, file: Path) -> tuple[str, ...]:
    """Write a classifier as one ONNX file for any number of texts of any length it can read.

    Its weights lie inside. The inputs are int64 `[batch, length]`, the output is ``logits``
    `[batch, C]`, with nothing softened. Near: :func:`quantise`, which makes it a quarter as large.

    Args:
        model: Loaded; it is left in eval mode.
        file: Where to write.

    Returns:
        The names of the inputs.

    Raises:
        ModelError: If it is too large for one file, or torch cannot convert it.
    """
    network = model.loaded
    size = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    if size > _LARGEST:
        raise ModelError(
            f"The model has {size / 1e9:.1f} GB of weights and an ONNX file holds 2: export it "
            "with --onnx=false."
        )
    names: tuple[str, ...] = ("input_ids", "attention_mask")
    if getattr(network.config, "type_vocab_size", 0) >= 2:
        names += ("token_type_ids",)
    examples = tuple(torch.ones(2, 3, dtype=torch.long) for _ in names)
    attention = network.config._attn_implementation
    network.set_attn_implementation("eager")  # T5's other one does not convert
    try:
        with _silence():
            torch.onnx.export(
                _Positional(model, names).eval(),
                examples,
                file,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes={"inputs": (_AXES,) * len(names)},
                dynamo=True,  # the older exporter is off by 0.03 where texts are padded
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"torch {torch.__version__} cannot convert a {network.config.model_type} to ONNX: "
            "export it with --onnx=false."
        ) from error
    finally:
        network.set_attn_implementation(attention)
    _forget_places(file)
    return names


def quantise(file: Path, smaller: Path) -> None:
    """Write an ONNX model with weights of 8 bits, those of the embeddings included.

    Activations are quantised as they come, so no examples are needed.

    Args:
        file: What :func:`convert` wrote.
        smaller: Where to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silence():
        quantize_dynamic(file, smaller, weight_type=QuantType.QInt8)


def _forget_places(file: Path) -> None:
    """Remove what the exporter noted for itself: shapes, and the paths of this machine's code.

    The quantiser finds the shapes contradicted by its own.
    """
    import onnx

    model = onnx.load(file)
    del model.graph.value_info[:]
    for part in (model, model.graph, *model.functions):
        del part.metadata_props[:]
    for owner in (model.graph, *model.functions):
        for node in owner.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.save(model, file)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep in what exporters say of themselves by warnings and loggers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
