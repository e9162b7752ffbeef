"""A tiny world: tokenizers, encoders of every family, data files; nothing from a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, in processes that do too

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from kd.vocabulary import train_wordpiece

disable_progress_bar()
torch.set_num_threads(1)  # tiny models: a second thread only waits

TEXTS = [
    "i love this film, it is a delight",
    "what a wonderful and happy day",
    "the food was great and the service kind",
    "a brilliant, warm and funny story",
    "i hate this film, it is a bore",
    "what a terrible and sad day",
    "the food was awful and the service rude",
    "a dull, cold and clumsy story",
]
LABELS = ("negative", "positive")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "bert": {**SIZES},
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
    | {"max_position_embeddings": 64},
    "roberta": {**SIZES, "max_position_embeddings": 66},
    "electra": {**SIZES, "embedding_size": 16},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {**SIZES, "global_attn_every_n_layers": 3, "local_attention": 16},
}
"""Small configurations of every family of encoder that kd is tested with."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_wordpiece(TEXTS, 200)


@pytest.fixture
def wandb_without_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let W&B be online and know nobody; it reads its environment once, so it forgets it after."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    yield
    monkeypatch.undo()
    wandb.teardown()


MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> MakeModel:
    """Return a function that writes a tiny classifier folder and returns its path."""

    def make(
        name: str = "model",
        family: str = "bert",
        labels: tuple[str, ...] = LABELS,
        **changes: object,
    ) -> Path:
        config = AutoConfig.for_model(
            family,
            **{
                **FAMILIES[family],
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "cls_token_id": tokenizer.cls_token_id,
                "sep_token_id": tokenizer.sep_token_id,
                "bos_token_id": tokenizer.cls_token_id,
                "eos_token_id": tokenizer.sep_token_id,
                "id2label": dict(enumerate(labels)),
                "label2id": {label: index for index, label in enumerate(labels)},
                **changes,
            },
        )
        folder = tmp_path / name
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    """Forty labelled rows, so that a validation split can be cut."""
    lines = ["text,label"]
    for turn in range(5):
        lines += [
            f'"{text} {turn}",{"positive" if place < 4 else "negative"}'
            for place, text in enumerate(TEXTS)
        ]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
