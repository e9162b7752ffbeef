"""Views: what one model reads of a row, as token ids made once.

Ids of all rows lie in one flat array; a batch is cut out of it and padded to its own longest row.
This room knows tokenizers and rows, no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        device: Where batches are cut out: the ids of a whole split lie there ahead of use.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int8] | None
    starts: NDArray[np.int64]
    padding: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, `[rows]`."""
        return np.diff(self.starts)

    def on(self, device: torch.device) -> Encoded:
        """Return the same rows, their batches being cut out on a device."""
        return replace(self, device=device)

    def select(self, keep: NDArray[np.bool_]) -> Encoded:
        """Return the rows that are kept."""
        tokens, lengths = np.repeat(keep, self.lengths), self.lengths[keep]
        types = None if self.types is None else self.types[tokens]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return replace(self, ids=self.ids[tokens], types=types, starts=starts)

    def pad(self, rows: NDArray[np.int64]) -> Inputs:
        """Return some rows as tensors `[B, L]`, L being the longest of them."""
        lengths = self.lengths[rows]
        bounds = torch.from_numpy(np.stack([self.starts[rows], lengths]))
        starts, sizes = bounds.to(self.device, non_blocking=True)
        steps = torch.arange(int(lengths.max()), device=self.device)
        mask = steps < sizes[:, None]
        # what lies beyond the end of a row is another row's, and masked
        places = (starts[:, None] + steps).clamp_(max=len(self.ids) - 1)
        inputs = {"input_ids": self._flat["ids"][places].long().masked_fill_(~mask, self.padding)}
        inputs["attention_mask"] = mask.long()
        if "types" in self._flat:
            inputs["token_type_ids"] = self._flat["types"][places].long().masked_fill_(~mask, 0)
        return inputs

    @cached_property
    def _flat(self) -> dict[str, Tensor]:
        arrays = {"ids": self.ids, **({} if self.types is None else {"types": self.types})}
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}


def encode(rows: Sequence[Row], view: View) -> Encoded:
    """Tokenise rows for one view, truncated to its length, special tokens included."""
    paired = any(row.pair is not None for row in rows)
    ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
    types: list[NDArray[np.int8]] = [np.zeros(0, dtype=np.int8)]
    lengths = np.zeros(len(rows), dtype=np.int64)
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
        tokens = encoding["input_ids"]
        lengths[start : start + len(tokens)] = [len(row) for row in tokens]
        ids.append(np.fromiter(chain.from_iterable(tokens), dtype=np.int32))
        if paired:
            segments = chain.from_iterable(encoding["token_type_ids"])
            types.append(np.fromiter(segments, dtype=np.int8))
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return Encoded(
        ids=np.concatenate(ids),
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
