"""Views: what one model reads of a row, as token ids made once.

Ids of all rows lie in one flat array; a batch is cut out of it and padded to its own longest row.
This room knows tokenizers and rows, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.texts import beginning
from kd.types import UNLABELLED, Inputs, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Encoded", "Reads", "View", "encode"]

Reads = Literal["text", "rationale", "text and rationale", "evidence"]
"""What of a row a view shows; ``evidence`` is no text, but a flag for each token of the text."""

_CHUNK = 2000  # rows encoded at once: bounds the memory of the tokenizer's Python objects


@dataclass(frozen=True)
class View:
    """How one model reads rows.

    Args:
        tokenizer: Its fast tokenizer.
        max_length: Tokens after which a text, or a rationale alone, is cut.
        vocabulary: Digest of the tokenizer; views that are equal but for the tokenizer's object
            share an encoding.
        prefix: Words before the text, by which a sequence-to-sequence model knows its task.
        reads: What of a row is shown.
        room: Tokens after which text and rationale together are cut; 0 is twice ``max_length``.
    """

    tokenizer: PreTrainedTokenizerFast
    max_length: int
    vocabulary: str
    prefix: str = ""
    reads: Reads = "text"
    room: int = 0

    @property
    def key(self) -> tuple[str, int, str, Reads, int]:
        """What makes two views the same."""
        room = self.room if self.reads == "text and rationale" else 0
        return self.vocabulary, self.max_length, self.prefix, self.reads, room


@dataclass(frozen=True)
class Encoded:
    """The rows of a split as one view reads them.

    Args:
        ids: Token ids of all rows, one after the other.
        types: Segment of each token (0 or 1) for sentence pairs, else null.
        starts: Where each row starts in ``ids``, and the end; `[rows + 1]`.
        padding: Id of the padding token.
        device: Where batches are cut out: the ids of a whole split lie there ahead of use.
        texts: Tokens of each row's text alone, `[rows]`, where its rationale follows; else null.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int8] | None
    starts: NDArray[np.int64]
    padding: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant
    texts: NDArray[np.int64] | None = None

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
        texts = None if self.texts is None else self.texts[keep]
        return replace(self, ids=self.ids[tokens], types=types, starts=starts, texts=texts)

    def pad(self, rows: NDArray[np.int64], hidden: NDArray[np.bool_] | None = None) -> Inputs:
        """Return some rows as tensors `[B, L]`, L being the longest of them.

        Args:
            rows: Their positions.
            hidden: Which of them show their text alone, `[B]`.

        Returns:
            Inputs of a model.
        """
        lengths = self.lengths[rows]
        if hidden is not None and self.texts is not None:
            lengths = np.where(hidden, self.texts[rows], lengths)
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
    """Tokenise rows for one view, truncated to its length, special tokens included.

    A view of ``evidence`` has 1 in the place of tokens that were quoted, 0 of others, and
    :data:`UNLABELLED` of special tokens and of rows for which nothing was.
    """
    if view.reads == "rationale":
        return _tokenised([_rationale(row) for row in rows], None, view)
    paired = any(row.pair is not None for row in rows)
    pairs = [row.pair or "" for row in rows] if paired else None
    texts = _tokenised([view.prefix + row.text for row in rows], pairs, view)
    if view.reads == "text":
        return texts
    if view.reads == "evidence":
        return _quoted(rows, view, texts)
    said = ["" if row.annotation and row.annotation.is_told else _rationale(row) for row in rows]
    rationales = _tokenised(said, None, view, special=False)
    return _joined(texts, rationales, view.room or 2 * view.max_length)


def _rationale(row: Row) -> str:
    return (row.annotation.rationale if row.annotation else None) or ""


def _tokenised(
    texts: Sequence[str], pairs: Sequence[str] | None, view: View, special: bool = True
) -> Encoded:
    """Tokenise texts, or pairs of them, some rows at a time."""
    ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
    types: list[NDArray[np.int8]] = [np.zeros(0, dtype=np.int8)]
    lengths = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        encoding = view.tokenizer(
            [beginning(text, view.max_length) for text in texts[chunk]],
            None if pairs is None else [beginning(text, view.max_length) for text in pairs[chunk]],
            add_special_tokens=special,
            truncation=True,
            max_length=view.max_length,
            return_attention_mask=False,
            return_token_type_ids=pairs is not None,
            verbose=False,
        )
        tokens = encoding["input_ids"]
        lengths[start : start + len(tokens)] = [len(row) for row in tokens]
        ids.append(np.fromiter(chain.from_iterable(tokens), dtype=np.int32))
        if pairs is not None:
            segments = chain.from_iterable(encoding["token_type_ids"])
            types.append(np.fromiter(segments, dtype=np.int8))
    return Encoded(
        ids=np.concatenate(ids),
        types=None if pairs is None else np.concatenate(types),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        padding=int(view.tokenizer.pad_token_id or 0),
    )


def _joined(texts: Encoded, rationales: Encoded, room: int) -> Encoded:
    """Put each row's rationale behind its text, closed by the token that closes the text.

    The text is whole; the rationale has what room there is left, and a row without one stays as
    it is.
    """
    begins, sizes = texts.starts[:-1], texts.lengths
    said = np.minimum(rationales.lengths, np.maximum(room - sizes - 1, 0))
    added = said + (said > 0)
    starts = np.concatenate([[0], np.cumsum(sizes + added)]).astype(np.int64)
    ids = np.zeros(int(starts[-1]), dtype=np.int32)
    types = np.ones(len(ids), dtype=np.int8)
    of_text = _places(starts[:-1], sizes)
    ids[of_text] = texts.ids
    types[of_text] = 0 if texts.types is None else texts.types
    ids[_places(starts[:-1] + sizes, said)] = rationales.ids[_places(rationales.starts[:-1], said)]
    closed = np.flatnonzero(said)
    ids[starts[closed + 1] - 1] = texts.ids[begins[closed] + sizes[closed] - 1]
    return Encoded(ids, types, starts, texts.padding, texts=sizes)


def _places(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each start on, as many as its size, one run after the other."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(int(ends[-1]) if len(ends) else 0)


def _quoted(rows: Sequence[Row], view: View, texts: Encoded) -> Encoded:
    """Return the flags of the texts' tokens."""
    flags = np.full(len(texts.ids), UNLABELLED, dtype=np.int32)
    quoted = [n for n, row in enumerate(rows) if row.annotation and row.annotation.evidence]
    for start in range(0, len(quoted), _CHUNK):
        chunk = quoted[start : start + _CHUNK]
        encoding = view.tokenizer(
            [view.prefix + beginning(rows[n].text, view.max_length) for n in chunk],
            truncation=True,
            max_length=view.max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        for place, n in enumerate(chunk):
            annotation = rows[n].annotation
            assert annotation is not None
            offsets = np.array(encoding["offset_mapping"][place]) - len(view.prefix)
            inside = np.zeros(len(offsets), dtype=np.int32)
            for first, end in annotation.evidence:
                inside |= (offsets[:, 0] < end) & (offsets[:, 1] > first)
            inside[np.array(encoding["special_tokens_mask"][place], dtype=bool)] = UNLABELLED
            inside[offsets[:, 1] <= 0] = UNLABELLED  # the prefix
            flags[texts.starts[n] : texts.starts[n + 1]] = inside
    return replace(texts, ids=flags, types=None, padding=UNLABELLED)
