"""A chat model of Hugging Face on this machine: it explains labels, and says how sure it is.

This room knows no network, no store and no data set; it is the only one here that knows torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedTokenizerFast,
)

from kd.errors import ConfigError, ModelError, RunError
from kd.rationales.annotators import Annotator, Question, Reply, Take, check_numbers
from kd.rationales.prompts import Prompt
from kd.rationales.replies import read_reply
from kd.vocabulary import load_tokenizer, quiet, reason

__all__ = ["LocalAnnotator"]

_VERSION = 1  # of how answers are made: another number asks every text anew
_DECISIVE = {".bin", ".jinja", ".json", ".model", ".safetensors", ".txt"}
_CHUNK = 8  # batches whose questions are taken, and sorted, together


class LocalAnnotator(Annotator):
    """A chat model from a folder or the hub, run here; no text leaves the machine.

    Args:
        path: Hub id or folder of a language model whose tokenizer has a chat template.
        prompt: How it is asked; null asks in kd's own words.
        max_tokens: Most tokens of an answer, thoughts included.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the whole
            distribution, and a text gets the same answer in any batch.
        samples: Answers per text; more than one needs a temperature.
        seed: Of the draws.
        batch_size: Texts answered together; halved for good when a GPU runs out of memory.
        dtype: Precision of the weights; null is float32 on a CPU and the file's own on a GPU.
        device: Such as ``cuda:1``; null takes a GPU if there is one.
        revision: Branch, tag or commit on the hub.
        confidence: ``decision`` is the probability of the answered label among all labels, had
            the model been made to name one at once, without giving reasons; ``verbalised``, and
            wherever the prompt tells the label, is the number that it writes.

    Raises:
        ConfigError: If a value is out of range, or several samples would all be the same.
    """

    input_price = 0.0
    output_price = 0.0

    def __init__(
        self,
        path: str,
        prompt: Prompt | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        samples: int = 1,
        seed: int = 0,
        batch_size: int = 8,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        device: str | None = None,
        revision: str | None = None,
        confidence: Literal["decision", "verbalised"] = "decision",
    ) -> None:
        numbers = {"max_tokens": (max_tokens, 1), "samples": (samples, 1)}
        numbers |= {"batch_size": (batch_size, 1)}
        check_numbers("LocalAnnotator", {**numbers, "temperature": (temperature, 0)})
        self.path = path
        self.prompt = prompt or Prompt()
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.revision = revision
        self.confidence = confidence

    @property
    def tells_labels(self) -> bool:
        """Whether the prompt says which label is to be explained."""
        return self.prompt.source == "rationalised"

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the model with a digest of its files, the prompt, and how answers are made.

        A hub id has no digest but its revision: name a commit to be sure.
        """
        return {
            "annotator": type(self).__name__,
            "version": _VERSION,
            "model": self.path,
            "revision": self.revision,
            "files": self._files,
            "prompt": self.prompt.facts(labels),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed if self.temperature else None,
            "dtype": self.dtype,
            "confidence": self.confidence,
        }

    def tokens(self, question: Question, labels: Sequence[str]) -> tuple[int, int]:
        """Return the tokens of the prompt, counted, and half of the most that may follow."""
        return len(self._asked(question, labels).ids), -(-self.max_tokens // 2)

    def answer(self, questions: Iterable[Question], labels: Sequence[str], take: Take) -> None:
        """Answer all questions; those taken together are answered longest first.

        Args:
            questions: Taken in chunks of some batches.
            labels: Class names.
            take: Receives each question with its reply.

        Raises:
            ConfigError: If the model does not load, or its chat template refuses the prompt.
            RunError: If a single text is too much for the GPU's memory.
        """
        left, size = iter(questions), self.batch_size
        while chunk := list(islice(left, _CHUNK * self.batch_size)):
            waiting = []
            for asked in (self._asked(question, labels) for question in chunk):
                if len(asked.ids) + self.max_tokens <= self._limit:
                    waiting.append(asked)
                else:
                    take(asked.question, self._too_long(asked))
            waiting.sort(key=lambda asked: -len(asked.ids))
            while waiting:
                batch = waiting[:size]
                try:
                    replies = self._replies(batch, labels)
                except torch.OutOfMemoryError as error:
                    if len(batch) == 1:
                        raise RunError(
                            f"{self.device} has too little memory for {self.path} and a text of "
                            f"{len(batch[0].ids)} tokens: give a smaller model, fewer max_tokens "
                            "or dtype=bfloat16."
                        ) from error
                    size = len(batch) // 2
                    continue
                for asked, reply in zip(batch, replies, strict=True):
                    take(asked.question, reply)
                del waiting[:size]

    @cached_property
    def _files(self) -> str | None:
        """Digest of all files of a folder that decide an answer; null for a hub id."""
        if not Path(self.path).is_dir():
            return None
        state = hashlib.sha256()
        for file in sorted(Path(self.path).iterdir()):
            if file.suffix in _DECISIVE:
                with file.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
                state.update(f"{file.name} {digest}\n".encode())
        return state.hexdigest()[:32]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast:
        try:
            with quiet():
                tokenizer = load_tokenizer(self.path, revision=self.revision)
        except ModelError as error:
            raise ConfigError(f"LocalAnnotator.path cannot be used: {error}") from error
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"LocalAnnotator.path: the tokenizer of {self.path} has no chat template; give a "
                "model that was trained to follow instructions."
            )
        return tokenizer

    @cached_property
    def _network(self) -> Any:
        load: Any = AutoModelForCausalLM.from_pretrained
        try:
            usual = "float32" if torch.device(self.device).type == "cpu" else "auto"
            with quiet():
                network, report = load(
                    self.path,
                    revision=self.revision,
                    dtype=self.dtype or usual,
                    output_loading_info=True,
                    trust_remote_code=False,
                )
            if report["missing_keys"]:
                raise ValueError(f"its weights lack {min(report['missing_keys'])}")
            end = network.generation_config.eos_token_id or self._tokenizer.eos_token_id
            if end is None:
                raise ValueError("it has no token that ends an answer")
            network.eval().to(self.device)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ConfigError(
                f"LocalAnnotator.path={self.path} cannot be used: {reason(error)}; give the folder "
                "or the hub id of a chat model, and without a network one fetched before."
            ) from error
        # the file's own habits of drawing and of penalising repetition are not the recipe's
        network.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0)
        return network

    def _asked(self, question: Question, labels: Sequence[str]) -> _Asked:
        """Return a question as the model reads it."""
        messages = self.prompt.messages(question, labels)
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ConfigError(
                f"The chat template of {self.path} refuses the prompt: {reason(error)}; change "
                "LocalAnnotator.prompt."
            ) from error
        return _Asked(question, str(text), self._encoded([str(text)])[0])

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    @property
    def _limit(self) -> float:
        """Most tokens that the model was made for, those of the answer included."""
        config = self._network.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or math.inf

    def _too_long(self, asked: _Asked) -> Reply:
        return Reply(
            "too_long",
            reason=f"The prompt has {len(asked.ids)} tokens and the answer may have "
            f"{self.max_tokens}, but {self.path} reads {self._limit} in all.",
        )

    @torch.inference_mode()
    def _replies(self, batch: Sequence[_Asked], labels: Sequence[str]) -> list[Reply]:
        """Return the replies to some questions, in their order."""
        replies = []
        ends = torch.tensor(self._network.generation_config.eos_token_id, device=self.device)
        for asked, ids in zip(batch, self._written(batch), strict=True):
            end = torch.isin(ids, ends).nonzero()
            size = int(end[0]) + 1 if len(end) else len(ids)
            said = str(self._tokenizer.decode(ids[:size], skip_special_tokens=True))
            reply = read_reply(
                # some chat templates open the thoughts that the model then closes
                f"<think>{said}" if asked.text.rstrip().endswith("<think>") else said,
                asked.question,
                labels,
                finish_reason="stop" if len(end) else "length",
            )
            is_decided = self.confidence == "decision" and not self.tells_labels
            if is_decided and reply.label is not None:
                certainty = self._probabilities(asked.text, labels)[labels.index(reply.label)]
                reply = replace(reply, confidence=float(certainty), confidence_source="decision")
            replies.append(replace(reply, prompt_tokens=len(asked.ids), completion_tokens=size))
        return replies

    def _written(self, batch: Sequence[_Asked]) -> Tensor:
        """Return what the model writes, `[B, R]`; after its end a row is filled up."""
        network = self._network
        rows = [torch.tensor(asked.ids, device=network.device) for asked in batch]
        ids, mask = (
            pad_sequence(some, batch_first=True, padding_side="left")
            for some in (rows, [torch.ones_like(row) for row in rows])
        )
        draws = []
        if self.temperature:
            sources = [self._generator(asked.question) for asked in batch]
            draws = [_Draws(self.temperature, sources)]
        answers: Tensor = network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_tokens,
            logits_processor=draws,
        )
        return answers[:, ids.shape[1] :]

    def _generator(self, question: Question) -> torch.Generator:
        """Return the source of all draws for a question, whatever it is answered with."""
        name = f"{self.seed} {question.sample} {question.text}".encode()
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
        return torch.Generator(self._network.device).manual_seed(seed)

    def _probabilities(self, prompt: str, labels: Sequence[str]) -> Tensor:
        """Return how probable each label is as the whole answer to a prompt, `[C]`, sum 1.

        The prompt is read once; only the tokens in which the answers differ are read for each.
        """
        network = self._network
        answers = [json.dumps({"label": label}, ensure_ascii=False) for label in labels]
        ids = self._encoded([prompt + answer for answer in answers])
        columns = enumerate(zip(*ids, strict=False))
        differ = (place for place, column in columns if len(set(column)) > 1)
        shared = next(differ, len(ids[0]) - 1) - 1  # the last shared token predicts the first
        read = torch.tensor([ids[0][:shared]], device=network.device)
        memory = network(read, use_cache=True, logits_to_keep=1).past_key_values
        memory.batch_repeat_interleave(len(ids))
        rows = pad_sequence(
            [torch.tensor(row[shared:]) for row in ids], batch_first=True, padding_value=-100
        ).to(network.device)
        logits = network(rows[:, :-1].clamp(min=0), past_key_values=memory).logits
        surprise = cross_entropy(logits.float().transpose(1, 2), rows[:, 1:], reduction="none")
        return (-surprise.sum(1)).softmax(0)


@dataclass(frozen=True)
class _Asked:
    """A question as the model reads it."""

    question: Question
    text: str
    ids: list[int]


class _Draws(LogitsProcessor):
    """Make the likeliest token a draw, by Gumbel noise; each row has a generator of its own."""

    def __init__(self, temperature: float, generators: Sequence[torch.Generator]) -> None:
        self.temperature = temperature
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waits = [torch.empty_like(scores[0]).exponential_(generator=g) for g in self.generators]
        return scores / self.temperature - torch.stack(waits).log()
