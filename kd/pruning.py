"""Vocabularies cut down to what some texts use.

A pruned tokenizer cuts those texts into the tokens that it cut them into before, by fewer numbers;
other texts fall into smaller pieces. This room knows tokenizers, no model and no row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kd.errors import ModelError

__all__ = ["prune"]

_CHUNK = 1000  # texts that are cut into tokens at once


def prune(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    minimum_count: int = 1,
    keep: Iterable[int] = (),
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Drop the tokens that texts do not use.

    Special tokens stay, and single characters and bytes, so that any text can still be encoded.
    With ``minimum_count=1`` the texts are cut as before, token by token.

    Args:
        tokenizer: WordPiece, BPE, Unigram or whole words; left as it is.
        texts: What to count.
        minimum_count: Occurrences of a token that is kept.
        keep: Numbers of tokens to keep whatever the texts use.

    Returns:
        A new tokenizer, and the old number of each of its tokens.

    Raises:
        ModelError: If there is no text.
    """
    counts = Counter[int]()
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        for numbers in tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]:
            counts.update(numbers)
    if not counts:
        raise ModelError("There is no text to prune a vocabulary by.")
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model, numbers_of = state["model"], tokenizer.get_vocab()
    tokens = {number: token for token, number in numbers_of.items()}
    kept = {tokens[number] for number, count in counts.items() if count >= minimum_count}
    kept |= {tokens[number] for number in {*tokenizer.all_special_ids, *keep} & tokens.keys()}
    kept |= {added["content"] for added in state["added_tokens"] if added["special"]}
    kept |= {token for token in _own_tokens(model) if _is_letter(token, model)}
    if tokenizer.unk_token_id in counts and model["type"] == "WordPiece":
        kept |= _tried_tokens(tokenizer.backend_tokenizer, texts, model)
    if model["type"] == "BPE":
        _keep_parts(kept, model)
    if model["type"] == "Unigram":  # the penalty of an unknown letter is measured from the lowest
        kept.add(min(model["vocab"], key=lambda piece: float(piece[1]))[0])
    own = _own_tokens(model)
    rows = sorted(numbers_of[token] for token in kept & own)
    padding = tokenizer.pad_token_id
    if padding in rows:  # RoBERTa counts positions from the number of the padding: leave it there
        rows.remove(padding)
        rows.insert(padding, padding)
    rows += sorted(numbers_of[token] for token in kept - own)  # added ones come last, always
    _renumber(state, {tokens[row]: number for number, row in enumerate(rows)})
    with TemporaryDirectory() as folder:  # a class may build its own parts: read as a user will
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        return type(tokenizer).from_pretrained(folder), rows


def _own_tokens(model: dict[str, Any]) -> set[str]:
    """Return the vocabulary of the model itself, without what was added to the tokenizer."""
    if model["type"] == "Unigram":
        return {piece for piece, _ in model["vocab"]}
    return set(model["vocab"])


def _is_letter(token: str, model: dict[str, Any]) -> bool:
    """Whether a token is one character, at the start of a word or inside of one, or one byte."""
    bare = token.removeprefix(model.get("continuing_subword_prefix") or "")
    bare = bare.removesuffix(model.get("end_of_word_suffix") or "").removeprefix("▁")
    return len(bare) <= 1 or (len(token) == len("<0x00>") and token.startswith("<0x"))


def _tried_tokens(backend: Tokenizer, texts: Iterable[str], model: dict[str, Any]) -> set[str]:
    """Return all pieces of the words that WordPiece cannot read.

    It reads from the left the longest piece that fits, and gives up where none does. Without a
    long piece that was tried, shorter ones might reach the end.
    """
    prefix, limit = model["continuing_subword_prefix"], model["max_input_chars_per_word"]
    words = set[str]()
    for text in texts:
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    found = set[str]()
    for word in words:
        read = [token.value for token in backend.model.tokenize(word)]
        if read == [model["unk_token"]] and len(word) <= limit:
            for start in range(len(word)):
                ends = range(start + 1, len(word) + 1)
                found |= {(prefix if start else "") + word[start:end] for end in ends}
    return found & set(model["vocab"])


def _keep_parts(kept: set[str], model: dict[str, Any]) -> None:
    """Add the tokens that BPE merges on its way to the kept ones; drop all other merges."""
    prefix = model["continuing_subword_prefix"] or ""
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    made_of: dict[str, list[list[str]]] = {}
    for first, second in merges:
        made_of.setdefault(first + second.removeprefix(prefix), []).append([first, second])
    waiting = list(kept)
    while waiting:
        for part in {part for pair in made_of.get(waiting.pop(), ()) for part in pair} - kept:
            kept.add(part)
            waiting.append(part)
    model["merges"] = [pair for pair in merges if pair[0] + pair[1].removeprefix(prefix) in kept]


def _renumber(state: dict[str, Any], numbers: dict[str, int]) -> None:
    """Write new numbers wherever a tokenizer's JSON has them."""
    model = state["model"]
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        unknown = None if unknown is None else numbers[model["vocab"][unknown][0]]
        pieces = {piece: score for piece, score in model["vocab"] if piece in numbers}
        model["vocab"] = [[piece, pieces[piece]] for piece in numbers if piece in pieces]
        model["unk_id"] = unknown
    else:
        own = model["vocab"]
        model["vocab"] = {token: number for token, number in numbers.items() if token in own}
    state["added_tokens"] = [
        {**added, "id": numbers[added["content"]]}
        for added in state["added_tokens"]
        if added["content"] in numbers
    ]
    processor = state["post_processor"] or {}
    for part in processor.get("processors", [processor]):
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [numbers[token] for token in special["tokens"]]
        for name in {"cls", "sep"} & part.keys():
            part[name] = [part[name][0], numbers[part[name][0]]]
