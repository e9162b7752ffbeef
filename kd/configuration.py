"""Configurations of encoders: read from a path, and what the families call the same thing.

This room knows Hugging Face configurations, no weights and no tokenizer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from kd.errors import ModelError
from kd.vocabulary import reason

__all__ = ["check_weights", "dropout_of", "read_config"]

_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_decoder_layers")
_MOST = dict.fromkeys(_LAYERS, 1000) | {"num_labels": 10**6}
_FEW_WEIGHTS = 10**8  # fit into any memory


def read_config(path: str, model_type: str | None, revision: str | None) -> PretrainedConfig:
    """Read the configuration of a model.

    Args:
        path: A folder or a hub id.
        model_type: Its family, where the configuration does not say it.
        revision: Branch, tag or commit on the hub.

    Returns:
        The configuration.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    try:
        values, _ = PretrainedConfig.get_config_dict(path, revision=revision)
        _check_numbers(path, values)
        if model_type is None:  # said in so many words: else transformers asks, and may be told yes
            config: PretrainedConfig = AutoConfig.from_pretrained(
                path, revision=revision, trust_remote_code=False
            )
            return config
        values.pop("model_type", None)
        return AutoConfig.for_model(model_type, **values)
    except ModelError:
        raise
    except OSError as error:
        if os.path.isfile(Path(path, "config.json")):
            raise ModelError(f"The config.json of {path} is not valid JSON.") from error
        raise ModelError(
            f"{path} is neither a model folder here nor a model that the hub gave: check the "
            "path, and the network if it is a hub id."
        ) from error
    except Exception as error:  # what hostile values raise in transformers has no common class
        if "auto_map" in str(error) or "custom code" in str(error):
            raise ModelError(
                f"{path} comes with code of its own, which kd never runs: take a model of a family "
                "that transformers knows."
            ) from error
        if "`model_type`" in str(error):
            raise ModelError(
                f"The config.json of {path} does not say its model_type: set model_type beside "
                "the path, e.g. bert."
            ) from error
        raise ModelError(f"The config.json of {path} does not load: {reason(error)}.") from error


def _check_numbers(path: str, values: dict[str, Any]) -> None:
    """Refuse numbers that would fill the memory as soon as they are read."""
    for name, most in _MOST.items():
        value = values.get(name)
        if isinstance(value, int) and value > most:
            raise ModelError(f"The config.json of {path} has {name}={value!r:.20}: correct it.")


def check_weights(config: PretrainedConfig, architecture: Any, path: Path) -> None:
    """Refuse a configuration that describes far more weights than lie beside it.

    Args:
        config: What a model folder says.
        architecture: The class of ``transformers`` that makes the network.
        path: The folder; of another path nothing is known.

    Raises:
        ValueError: If they cannot belong together.
    """
    files = [file for kind in ("*.safetensors", "*.bin") for file in path.glob(kind)]
    stored = sum(file.stat().st_size for file in files)
    if not stored:
        return
    with torch.device("meta"):
        network = architecture.from_config(config)
    count = sum(weight.numel() for weight in network.parameters())
    if count > max(_FEW_WEIGHTS, 4 * stored):
        raise ValueError(f"config.json describes {count:,} weights, in files of {stored:,} bytes")


def dropout_of(config: PretrainedConfig, dropout: float) -> dict[str, float]:
    """Find the family's own names for the dropout of hidden states and attention."""
    names = ["hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"]
    names += ["embedding_dropout", "mlp_dropout", "dropout_rate"]
    return {
        name: dropout for name in names if isinstance(getattr(config, name, None), (int, float))
    }
