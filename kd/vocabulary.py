"""Tokenizers: loaded from a model, trained on a corpus, told apart by a digest.

This room turns paths and texts into Hugging Face fast tokenizers. It knows no model and no row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoTokenizer, BertTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from kd.errors import ModelError

__all__ = ["digest", "load_tokenizer", "quiet", "reason", "train_wordpiece"]

_LETTERS = 1000  # of a trained vocabulary at most; rarer ones are unknown


def load_tokenizer(
    path: str, config: PretrainedConfig | None = None, revision: str | None = None
) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model.

    Args:
        path: A folder or a hub id.
        config: The model's configuration, for folders whose own one names no ``model_type``.
        revision: Branch, tag or commit on the hub.

    Returns:
        A fast tokenizer.

    Raises:
        ModelError: If there is no usable fast tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, config=config, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # what hostile files raise has no common class
        raise ModelError(f"{path} has no tokenizer that loads: {reason(error)}.") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"The tokenizer of {path} has no fast version, which kd needs.")
    if len(tokenizer) < len(tokenizer.all_special_tokens) + 3:  # what no file at all gives
        raise ModelError(f"{path} has no tokenizer files: add them, or name a tokenizer.")
    return tokenizer


def train_wordpiece(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece vocabulary on texts (Schuster & Nakajima 2012).

    The same texts give the same vocabulary, in every process.

    Args:
        texts: The corpus.
        size: Upper limit of the vocabulary, special tokens included.

    Returns:
        A BERT tokenizer with the new vocabulary.

    Raises:
        ModelError: If there is no text.
    """
    from tokenizers import BertWordPieceTokenizer

    corpus = list(texts)
    trainer = BertWordPieceTokenizer(lowercase=True)
    counts = Counter[str]()
    for text in corpus:
        counts.update("".join(trainer.normalize(text).split()))
    if not counts:
        raise ModelError("There is no text to train a vocabulary on.")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))
    # a letter takes two places: at the start of a word and inside of one
    letters = letters[: min(_LETTERS, (size - len(special)) // 2)]

    def train(limit: int, first: list[str]) -> dict[str, int]:
        trainer.train_from_iterator(
            corpus,
            vocab_size=limit,
            special_tokens=first,
            initial_alphabet=letters,
            limit_alphabet=len(letters),
            show_progress=False,
        )
        vocabulary: dict[str, int] = trainer.get_vocab()
        return vocabulary

    # the library numbers letters in the order of a random hash table, and breaks ties by number:
    # letters that are known before the merges start keep their places
    first = sorted(set(train(0, special)) - set(special))
    return BertTokenizer(vocab=train(size, special + first))


def digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return 16 hex digits that are equal for tokenizers which encode every text alike."""
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None  # set anew by every call
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def reason(error: Exception) -> str:
    """Return the first sentence of a library's message, on one line and without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".!")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and tables: what matters is said by an error."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
