"""Configurations of encoders: read from a path, and what the families call the same thing.

This room knows Hugging Face configurations, no weights and no tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from kd.errors import ModelError
from kd.vocabulary import reason

__all__ = ["dropout_of", "read_config"]


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
        if model_type is None:
            config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision)
            return config
        values, _ = PretrainedConfig.get_config_dict(path, revision=revision)
        values.pop("model_type", None)
        return AutoConfig.for_model(model_type, **values)
    except OSError as error:
        if Path(path, "config.json").is_file():
            raise ModelError(f"The config.json of {path} is not valid JSON.") from error
        raise ModelError(
            f"{path} is neither a model folder here nor a model that the hub gave: check the "
            "path, and the network if it is a hub id."
        ) from error
    except (ValueError, KeyError, StrictDataclassError) as error:
        if "`model_type`" in str(error):
            raise ModelError(
                f"The config.json of {path} does not say its model_type: set model_type beside "
                "the path, e.g. bert."
            ) from error
        raise ModelError(f"The config.json of {path} does not load: {reason(error)}.") from error


def dropout_of(config: PretrainedConfig, dropout: float) -> dict[str, float]:
    """Find the family's own names for the dropout of hidden states and attention."""
    names = ["hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"]
    names += ["embedding_dropout", "mlp_dropout", "dropout_rate"]
    return {
        name: dropout for name in names if isinstance(getattr(config, name, None), (int, float))
    }
