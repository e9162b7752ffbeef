"""Changes to a loaded network: another head, fewer layers; and how a head's logits are read.

Heads are matched by class name, never by position alone. This room knows Hugging Face networks,
no tokenizer and no path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from kd.errors import ConfigError, ModelError

__all__ = [
    "check_same_classes",
    "check_same_problem",
    "class_probabilities",
    "find_head",
    "fit_head",
    "is_multi_label",
    "keep_layers",
    "stored_labels",
]

_SEVERAL: Final = "multi_label_classification"
_ONE: Final = "single_label_classification"


def stored_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the class names of a configuration in the order of its logits.

    Args:
        config: Of a classifier.

    Returns:
        The names.

    Raises:
        ModelError: If its classes are not numbered from 0.
    """
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(len(names))):
        raise ModelError(
            f"The id2label of a config.json numbers its classes {sorted(names)}: they must go from "
            f"0 to {len(names) - 1}."
        )
    return tuple(names[index] for index in range(len(names)))


def is_multi_label(config: PretrainedConfig) -> bool:
    """Tell whether a classifier may give a row several classes: a sigmoid for each logit."""
    return bool(config.problem_type == _SEVERAL)


def class_probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Return what logits `[B, C]` mean, in float32: a softmax, or a sigmoid for each class."""
    logits = logits.float()
    return logits.sigmoid() if multi_label else logits.softmax(dim=-1)


def find_head(network: PreTrainedModel) -> nn.Linear:
    """Return the last linear layer, which gives the logits.

    Args:
        network: A classifier.

    Returns:
        Its head.

    Raises:
        ModelError: If there is none.
    """
    heads = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(network.base_model_prefix + ".")
        and module.out_features == network.config.num_labels
    ]
    if not heads:
        raise ModelError(f"{type(network).__name__} has no linear classification head.")
    return heads[-1]


def _order(stored: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return where the wanted classes stand among the stored: by exact name, else by any case."""
    for form in (str, str.casefold):
        old, new = [form(name) for name in stored], [form(name) for name in wanted]
        if sorted(old) == sorted(new) and len(set(old)) == len(old):
            return [old.index(name) for name in new]
    return None


def check_same_classes(name: str, stored: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Refuse a teacher whose classes are not the data's.

    Args:
        name: The teacher, for the message.
        stored: Its classes.
        wanted: Those of the data.

    Raises:
        ModelError: If they differ by more than order and case.
    """
    if _order(stored, wanted) is not None:
        return
    hint = (
        "say what they mean with label_names beside the teacher's path"
        if all(re.fullmatch(r"LABEL_\d+", label) for label in stored)
        else "use a teacher of these classes, or rename the data's with data.label_map"
    )
    raise ModelError(
        f"The teacher {name} answers with {', '.join(stored)}, but the data's classes are "
        f"{', '.join(wanted)}: {hint}."
    )


def check_same_problem(name: str, config: PretrainedConfig, multi_label: bool) -> None:
    """Refuse a teacher of one class a row where a row may have several, and the other way round.

    Args:
        name: The teacher, for the message.
        config: Its configuration; one that says nothing is of one class, as in transformers.
        multi_label: Whether a row of the data may have several.

    Raises:
        ModelError: If they differ.
    """
    if is_multi_label(config) != multi_label:
        raise ModelError(
            f"The config.json of the teacher {name} has the problem_type {config.problem_type}, "
            f"but data.multi_label is {str(multi_label).lower()}: use a teacher that was trained "
            f"for {_SEVERAL if multi_label else _ONE}, or write that there if this one was."
        )


def fit_head(
    network: PreTrainedModel,
    stored: tuple[str, ...],
    wanted: tuple[str, ...],
    multi_label: bool = False,
) -> None:
    """Keep the head where its class names are the wanted ones, by name; else make it anew.

    Args:
        network: Changed in place.
        stored: Class names of its head.
        wanted: Class names in the wanted order.
        multi_label: Whether a row may have several classes.
    """
    head, order = find_head(network), _order(stored, wanted)
    with torch.no_grad():
        if order is not None:
            head.weight.copy_(head.weight[order].clone())
            if head.bias is not None:
                head.bias.copy_(head.bias[order].clone())
        else:
            fresh = nn.Linear(head.in_features, len(wanted), bias=head.bias is not None)
            fresh.weight.normal_(std=getattr(network.config, "initializer_range", 0.02))
            if fresh.bias is not None:
                fresh.bias.zero_()
            head.weight, head.bias = fresh.weight, fresh.bias
            head.out_features = len(wanted)
    network.config.id2label = dict(enumerate(wanted))  # num_labels follows
    network.config.label2id = {name: index for index, name in enumerate(wanted)}
    network.config.problem_type = _SEVERAL if multi_label else _ONE
    network.num_labels = len(wanted)  # type: ignore[assignment]


def keep_layers(network: PreTrainedModel, keep: list[int]) -> PreTrainedModel:
    """Copy a model with some of its transformer layers.

    Weights are copied by name into a new model: deep copies break the hooks by which
    ``transformers`` collects hidden states.

    Args:
        network: Left as it is.
        keep: Rising numbers of the layers.

    Returns:
        A new model.

    Raises:
        ConfigError: If there are no such layers.
    """
    total = network.config.num_hidden_layers
    if not keep or sorted(set(keep)) != keep or keep[0] < 0 or keep[-1] >= total:
        raise ConfigError(
            f"keep_layers={keep} must be rising layer numbers from 0 to {total - 1}, as the model "
            f"has {total} layers."
        )
    lists = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    if not lists:
        raise ConfigError(f"keep_layers does not fit {type(network).__name__}: it has no layers.")
    prefix = lists[0]
    config = type(network.config).from_dict(network.config.to_dict())
    config.num_hidden_layers = len(keep)
    if getattr(config, "layer_types", None):  # ModernBERT: local or global attention by layer
        config.layer_types = [network.config.layer_types[layer] for layer in keep]
    small: PreTrainedModel = type(network)(config)
    layer_of = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    weights: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        match = layer_of.match(name)
        if match is None:
            weights[name] = value
        elif int(match[1]) in keep:
            weights[f"{prefix}.{keep.index(int(match[1]))}.{name[match.end() :]}"] = value
    missing, unexpected = small.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ConfigError(
            f"keep_layers={keep} does not fit {type(network).__name__}, whose layer 0 differs from "
            f"the others ({', '.join([*missing, *unexpected][:2])}): keep layer 0 first."
        )
    return small
