"""Views: what one model reads of a row, as token ids made once.

Ids of all rows lie in one flat array; a batch is cut out of it and padded to its own longest row.
This room knows tokenizers and rows, no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kd.types import Inputs, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Encoded", "View", "encode"]

_CHARACTERS_PER_TOKEN = 50  # of a word so long that it is cut; no tokenizer here averages more
_CHUNK = 2000  # rows encoded at once: bounds the memory of the tokenizer's Python objects


@dataclass(frozen=True)
class View:
    """How one model reads rows.

    Args:
        tokenizer: Its fast tokenizer.
        max_length: Tokens after which a row is cut.
        vocabulary: Digest of the tokenizer; views with equal digest and length share an encoding.
    """

    tokenizer: PreTrainedTokenizerFast
    max_length: int
    vocabulary: str

    @property
    def key(self) -> tuple[str, int]:
        """What makes two views the same."""
        return self.vocabulary, self.max_length


@dataclass(frozen=True)
class Encoded:
    """The rows of a split as one view reads them.

    Args:
        ids: Token ids of all rows, one after the other.
        types: Segment of each token (0 or 1) for sentence pairs, else null.
        starts: Where each row starts in ``ids``, and the end; `[rows + 1]`.
        padding: Id of the padding token.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int8] | None
    starts: NDArray[np.int64]
    padding: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, `[rows]`."""
        return np.diff(self.starts)

    def pad(self, rows: Sequence[int] | NDArray[np.int64]) -> Inputs:
        """Return some rows as tensors `[B, L]`, L being the longest of them."""
        starts, ends = self.starts[rows], self.starts[np.asarray(rows) + 1]
        lengths = ends - starts
        mask = np.arange(lengths.max()) < lengths[:, None]
        inputs = {"input_ids": np.full(mask.shape, self.padding, dtype=np.int64)}
        # the flat position of every token of every row, row by row, as `mask` lists its ones
        places = np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)])
        inputs["input_ids"][mask] = self.ids[places]
        inputs["attention_mask"] = mask.astype(np.int64)
        if self.types is not None:
            inputs["token_type_ids"] = np.zeros(mask.shape, dtype=np.int64)
            inputs["token_type_ids"][mask] = self.types[places]
        return {name: torch.from_numpy(values) for name, values in inputs.items()}


def encode(rows: Sequence[Row], view: View) -> Encoded:
    """Tokenise rows for one view, truncated to its length, special tokens included."""
    paired = any(row.pair is not None for row in rows)
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        encoding = view.tokenizer(
            [_beginning(row.text, view.max_length) for row in chunk],
            [_beginning(row.pair or "", view.max_length) for row in chunk] if paired else None,
            truncation=True,
            max_length=view.max_length,
            return_attention_mask=False,
            return_token_type_ids=paired,
            verbose=False,
        )
        ids.extend(np.array(row, dtype=np.int32) for row in encoding["input_ids"])
        if paired:
            types.extend(np.array(row, dtype=np.int8) for row in encoding["token_type_ids"])
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in ids], out=starts[1:])
    return Encoded(
        ids=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32),
        types=np.concatenate(types) if paired else None,
        starts=starts,
        padding=int(view.tokenizer.pad_token_id or 0),
    )


def _beginning(text: str, tokens: int) -> str:
    """Leave out what is truncated anyway: every word is one token at least."""
    longest = tokens * _CHARACTERS_PER_TOKEN
    if len(text) <= longest:
        return text
    words_and_blanks = islice(re.finditer(r"\S+|\s+", text), 2 * tokens)
    return "".join(piece[0][:longest] for piece in words_and_blanks)
