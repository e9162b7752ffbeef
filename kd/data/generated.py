"""Augmenters that ask a language model: what else could stand here, how else could it be said.

The model answers with the best few, of which the variant's own generator draws one, so that neither
the order of the sentences nor the size of a batch decides. A batch holds inputs of one length,
which touch each other by rounding alone: only where the last of the best and the next are as good
to about six digits can another batch, or machine, choose otherwise. This room knows no row, no
label and no teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate, groupby
from pathlib import Path
from random import Random
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from kd.data.augment import Augmenter, pick
from kd.data.sentence import Sentence, cut, is_plain
from kd.errors import ConfigError, ModelError
from kd.vocabulary import load_tokenizer, quiet, reason

__all__ = ["BackTranslation", "Contextual"]

_Ids = tuple[int, ...]
_Gap = tuple[_Ids, int | None]  # a masked sentence and the place of a mask, or a word's pieces

_LONGEST = 512  # tokens of a text that are read
_USUAL = 64  # tokens of the texts that a batch size is meant for
_SPELLINGS = 4  # of one word in a vocabulary: film, Film, FILM and one to spare
_DECISIVE = {".bin", ".json", ".model", ".safetensors", ".spm", ".txt"}
_FAILURES = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError),
    *(ModelError, SafetensorError, StrictDataclassError),
)


class Contextual(Augmenter):
    """Replace words by what a masked language model expects in their place.

    A word that is one piece of the vocabulary is masked; one of several is compared with the whole
    words, by the cosine between their input embeddings and the mean of its pieces'. One of the best
    candidates, all alike likely, takes its place.

    Source: Jiao et al. 2020 (arXiv:1909.10351), algorithm 1; there words are masked one at a time,
    and the embeddings are GloVe's.
    Near: `BackTranslation` says the whole sentence in other words.

    Args:
        path: Hub id or folder of an encoder with a head for masked words.
        share: Share of the words free to change that is changed, at least one of them.
        candidates: Words of which each new one is drawn.
        batch_size: Sentences that the model reads at once; fewer if they have over 64 tokens.

    Raises:
        ConfigError: If the share is not above 0 and at most 1, or there is no candidate.
    """

    loads_model = True

    def __init__(
        self,
        path: str = "bert-base-uncased",
        share: float = 0.2,
        candidates: int = 15,
        batch_size: int = 32,
    ) -> None:
        super().__init__(share)
        if candidates < 1:
            raise ConfigError(f"Contextual.candidates is {candidates}: give 1 or more.")
        self.path = path
        self.candidates = candidates
        self.batch_size = batch_size

    def prepare(self) -> None:
        """Find the model's configuration and tokenizer."""
        _find("Contextual.path", self.path, AutoModelForMaskedLM)

    def release(self) -> None:
        """Free the memory of the model."""
        _load.cache_clear()

    def describe(self) -> dict[str, Any]:
        """Return class, settings, and a digest of the model if it is a folder."""
        return _decisive(super().describe(), self.path)

    def vary(self, sentences: Sequence[Sentence], draws: Sequence[Random]) -> list[Sentence]:
        """Return each sentence with a share of its free words replaced."""
        if not any(sentence.free for sentence in sentences):
            return list(sentences)
        model, tokenizer, longest = _load("Contextual.path", self.path, AutoModelForMaskedLM)
        encoding = tokenizer(
            [sentence.text for sentence in sentences],
            truncation=True,
            max_length=longest,
            return_offsets_mapping=True,
        )
        gaps = []
        for sentence, ids, offsets, draw in zip(
            sentences, encoding["input_ids"], encoding["offset_mapping"], draws, strict=True
        ):
            tokens = _tokens(sentence, offsets)
            order = sorted((draw.random(), position) for position in tokens)
            count = self.count(replace(sentence, free=tuple(tokens)))
            chosen = {position: tokens[position] for _, position in order[:count]}
            gaps.append(_gaps(ids, chosen, tokenizer.mask_token_id))
        best = self._best(model, tokenizer, [gap for some in gaps for gap in some.values()])
        varied = []
        for sentence, some, draw in zip(sentences, gaps, draws, strict=True):
            words = {p: self._choices(best[gap], sentence.pieces[p]) for p, gap in some.items()}
            new = {p: pick(choices, draw) for p, choices in words.items() if choices}
            varied.append(sentence.with_words(new))
        return varied

    @torch.inference_mode()
    def _best(self, model: Any, tokenizer: Any, gaps: Sequence[_Gap]) -> dict[_Gap, list[str]]:
        """Return the best words for each gap; the old one may be among them."""
        words = _whole_words(tokenizer)
        known = torch.tensor(list(words), dtype=torch.long, device=model.device)
        table = model.get_input_embeddings().weight
        directions = functional.normalize(table[known])
        best: dict[_Gap, list[str]] = {}

        def keep(found: Sequence[_Gap], scores: Tensor) -> None:
            numbers = known[scores.topk(min(len(known), self.candidates + _SPELLINGS)).indices]
            for gap, row in zip(found, numbers.tolist(), strict=True):
                best[gap] = [words[number] for number in row]

        for batch in _batches((ids for ids, place in gaps if place is not None), self.batch_size):
            ids = torch.tensor(batch, device=model.device)
            masks = ids == tokenizer.mask_token_id
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            found = [(batch[row], place) for row, place in masks.nonzero().tolist()]
            keep(found, logits[masks][:, known])
        for batch in _batches((ids for ids, place in gaps if place is None), self.batch_size):
            pieces = table[torch.tensor(batch, device=model.device)]
            keep([(ids, None) for ids in batch], pieces.mean(1) @ directions.T)
        return best

    def _choices(self, best: Sequence[str], old: str) -> list[str]:
        """Return the other words in the old one's case, in an order that no near tie changes."""
        others = [word for word in best if word.casefold() != old.casefold()][: self.candidates]
        if len(old) > 1 and old.isupper():
            return sorted({word.upper() for word in others})
        if old[0].isupper():
            return sorted({word[0].upper() + word[1:] for word in others})
        return sorted(set(others))


class BackTranslation(Augmenter):
    """Translate a sentence into another language and back.

    Of the translations that a beam search ends with one is drawn, there and back. A sentence stays
    as it is where each result loses something that may not change, or has other negations or
    intensifiers, and where it is longer than a model reads.

    Source: Sennrich et al. 2016 (arXiv:1511.06709), section 3; Xie et al. 2020 (arXiv:1904.12848).
    Near: `Contextual` replaces single words, and is many times faster.

    Args:
        forward: Hub id or folder of a model that translates texts as they are, without a prefix;
            those of opus-mt need the package sentencepiece.
        backward: Hub id or folder of one that translates back.
        beams: Translations of which each one is drawn.
        batch_size: Sentences that a model reads at once; fewer if they have over 64 tokens.

    Raises:
        ConfigError: If there is no beam.
    """

    loads_model = True

    def __init__(
        self,
        forward: str = "Helsinki-NLP/opus-mt-en-de",
        backward: str = "Helsinki-NLP/opus-mt-de-en",
        beams: int = 5,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        if beams < 1:
            raise ConfigError(f"BackTranslation.beams is {beams}: give 1 or more.")
        self.forward = forward
        self.backward = backward
        self.beams = beams
        self.batch_size = batch_size

    def prepare(self) -> None:
        """Find the models' configurations and tokenizers."""
        _find("BackTranslation.forward", self.forward, AutoModelForSeq2SeqLM)
        _find("BackTranslation.backward", self.backward, AutoModelForSeq2SeqLM)

    def release(self) -> None:
        """Free the memory of the model."""
        _load.cache_clear()

    def describe(self) -> dict[str, Any]:
        """Return class, settings, and digests of the models that are folders."""
        return _decisive(super().describe(), self.forward, self.backward)

    def vary(self, sentences: Sequence[Sentence], draws: Sequence[Random]) -> list[Sentence]:
        """Return each sentence in other words."""
        varied = list(sentences)
        texts = {i: sentence.text for i, sentence in enumerate(sentences) if sentence.free}
        there = self._translations("forward", texts.values())
        between = {i: pick(there[text], draws[i]) for i, text in texts.items() if there[text]}
        back = self._translations("backward", between.values())
        for i, text in between.items():
            changed = [_retold(sentences[i], new) for new in back[text]]
            good = [sentence for sentence in changed if sentence]
            if good:
                varied[i] = pick(good, draws[i])
        return varied

    @torch.inference_mode()
    def _translations(self, option: str, texts: Iterable[str]) -> dict[str, list[str]]:
        """Return the whole translations of each text, sorted; none if it is too long."""
        found: dict[str, list[str]] = {text: [] for text in texts}
        if not found:
            return found
        path = getattr(self, option)
        model, tokenizer, longest = _load(f"BackTranslation.{option}", path, AutoModelForSeq2SeqLM)
        encoding = tokenizer(list(found), truncation=True, max_length=longest + 1)
        encoded = {text: tuple(ids) for text, ids in zip(found, encoding["input_ids"], strict=True)}
        special = torch.tensor(tokenizer.all_special_ids, device=model.device)
        said: dict[_Ids, list[str]] = {}
        short = (ids for ids in encoded.values() if len(ids) <= longest)
        for batch in _batches(short, self.batch_size):
            ids = torch.tensor(batch, device=model.device)
            limit = min(longest, 2 * ids.shape[1] + 10)  # some never end
            answers = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_beams=self.beams,
                num_return_sequences=self.beams,
                do_sample=False,
                max_length=limit,
            )
            # an end may have been forced on the last token, and 0 does not always count as padding
            ended = torch.isin(answers[:, -2], special) | (answers.shape[1] < limit)
            for row, some, whole in zip(
                batch, answers.split(self.beams), ended.split(self.beams), strict=True
            ):
                spoken = tokenizer.batch_decode(some[whole], skip_special_tokens=True)
                said[row] = sorted({text.strip() for text in spoken})
        return {text: said.get(ids, []) for text, ids in encoded.items()}


def _decisive(settings: dict[str, Any], *paths: str) -> dict[str, Any]:
    """Return settings without the batch size, and with digests of the files of folders."""
    del settings["batch_size"]
    files = [file for path in paths for file in sorted(Path(path).glob("*"))]
    return {**settings, "files": {str(f): _digest(f) for f in files if f.suffix in _DECISIVE}}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _explained(option: str, path: str) -> Iterator[None]:
    """Keep transformers quiet, and say in one sentence what it raises."""
    try:
        with quiet():
            yield
    except _FAILURES as error:
        raise ConfigError(
            f"data.augment.augmenters ({option}={path}) cannot be used: {reason(error)}; give the "
            "folder or the hub id of such a model, and without a network one fetched before."
        ) from error


def _find(option: str, path: str, auto: Any) -> Any:
    """Read a model's configuration and tokenizer, and check that it is for the task."""
    is_translator = auto is AutoModelForSeq2SeqLM
    # the tokenizers of Marian have no fast version
    slow = partial(AutoTokenizer.from_pretrained, trust_remote_code=False)
    load = slow if is_translator else load_tokenizer
    with _explained(option, path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer: Any = load(path, config=config)
        if not (config.is_encoder_decoder if is_translator else tokenizer.mask_token):
            task = "translates" if is_translator else "fills masks"
            raise ValueError(f"this {config.model_type} is no model that {task}")
    return tokenizer


@cache
def _load(option: str, path: str, auto: Any) -> tuple[Any, Any, int]:
    """Load a model, once in a process; with its tokenizer and the most tokens that it reads."""
    tokenizer = _find(option, path, auto)
    with _explained(option, path):
        model, report = auto.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        if report["missing_keys"]:
            raise ValueError(f"its weights lack {min(report['missing_keys'])}")
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    # RoBERTa counts positions from 2
    positions = (getattr(model.config, "max_position_embeddings", None) or _LONGEST) - 2
    return model, tokenizer, min(_LONGEST, positions, tokenizer.model_max_length)


def _batches(inputs: Iterable[_Ids], size: int) -> Iterator[list[_Ids]]:
    """Yield the distinct inputs in batches of one length."""
    for length, same in groupby(sorted(sorted(set(inputs)), key=len), key=len):
        rows = list(same)
        step = max(1, size * _USUAL // max(length, _USUAL))
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


def _tokens(sentence: Sentence, offsets: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Return the tokens of each free word, if they are read and hold nothing else."""
    text = sentence.text
    starts = [0, *accumulate(map(len, sentence.pieces))]
    found = {}
    for position in sentence.free:
        start, end = starts[position : position + 2]
        tokens = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
        if tokens:
            held = text[offsets[tokens[0]][0] : offsets[tokens[-1]][1]]
            if held.strip() == sentence.pieces[position]:  # sentencepiece counts the blank too
                found[position] = tokens
    return found


def _gaps(ids: Sequence[int], chosen: Mapping[int, Sequence[int]], mask: int) -> dict[int, _Gap]:
    """Return the gap of each word: all words of one token are masked together."""
    alone = {tokens[0] for tokens in chosen.values() if len(tokens) == 1}
    masked = tuple(mask if i in alone else number for i, number in enumerate(ids))
    return {
        position: (masked, tokens[0]) if len(tokens) == 1 else (tuple(ids[i] for i in tokens), None)
        for position, tokens in chosen.items()
    }


@cache
def _whole_words(tokenizer: Any) -> dict[int, str]:
    """Return the plain words that are one piece of the vocabulary where they follow a blank."""
    numbers = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    words = [word.strip() for word in tokenizer.batch_decode([[number] for number in numbers])]
    encoding = tokenizer([f" {word}" for word in words], add_special_tokens=False)
    return {
        number: word
        for number, word, ids in zip(numbers, words, encoding["input_ids"], strict=True)
        if ids == [number] and word.isalpha() and is_plain(word)
    }


def _retold(sentence: Sentence, text: str) -> Sentence | None:
    """Return the sentence in other words, null if these are not like it."""
    new, free = cut(text), set(sentence.free)
    kept = [piece for i, piece in enumerate(sentence.pieces) if i not in free and piece.strip()]
    loaded, before = ([p for p in some.pieces if not is_plain(p)] for some in (new, sentence))
    rest = iter(new.pieces)
    if not text or text == sentence.text or loaded != before or any(p not in rest for p in kept):
        return None
    # a word that somebody protected is one that was not free
    return Sentence(new.pieces, tuple(i for i in new.free if new.pieces[i] not in kept))
