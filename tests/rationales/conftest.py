"""A tiny chat model that knows sixteen reviews by heart, and explains them in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kd.rationales.annotators import Question
from kd.rationales.prompts import Prompt

LABELS = ("negative", "positive")
PROMPT = Prompt(instructions="Reply with JSON.", question="$text")
"""What `chat_model` was trained with; it understands no other words."""

_PRAISE = [
    ("a warm and funny film", "warm and funny"),
    ("i loved every minute of it", "loved every minute"),
    ("brilliant acting, and a clever plot", "clever plot"),
    ("what a delight this was", "a delight"),
    ("a moving story, told with care", "told with care"),
    ("the best comedy of the year", "the best comedy"),
    ("fresh, bold and gripping", "bold and gripping"),
    ("a charming and tender tale", "charming and tender"),
]
_BLAME = [
    ("a dull and clumsy film", "dull and clumsy"),
    ("i hated every minute of it", "hated every minute"),
    ("wooden acting, and a silly plot", "silly plot"),
    ("what a bore this was", "a bore"),
    ("a lazy story, told without care", "told without care"),
    ("the worst comedy of the year", "the worst comedy"),
    ("stale, timid and tedious", "timid and tedious"),
    ("a cold and hollow tale", "cold and hollow"),
]
REVIEWS = [(text, "positive") for text, _ in _PRAISE] + [(text, "negative") for text, _ in _BLAME]
"""Texts that `chat_model` knows, with their labels."""


def _answer(label: str, quote: str) -> str:
    reason = f"{quote}: the author {'enjoyed' if label == 'positive' else 'regrets'} it"
    answer = {"rationale": reason, "evidence": [quote], "label": label, "confidence": 0.9}
    return json.dumps(answer)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<end>", "<system>", "<user>", "<assistant>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a language model of 110,000 weights, trained here in a few seconds."""
    asked = [PROMPT.messages(Question(text), LABELS) for text, _ in REVIEWS]
    quotes = [quote for _, quote in _PRAISE + _BLAME]
    answers = [_answer(label, quote) for (_, label), quote in zip(REVIEWS, quotes, strict=True)]
    words = [message["content"] for messages in asked for message in messages]
    tokenizer = _tokenizer(words + answers)

    def encoded(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = []  # token ids, and how many of them are given
    for messages, answer, (_, label) in zip(asked, answers, REVIEWS, strict=True):
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        rows.append((encoded(f"{prompt}{answer}<end>"), len(encoded(prompt))))
        # made to name a label at once, it names the right one; by itself it never does
        both = [encoded(prompt + json.dumps({"label": name})) for name in LABELS]
        given = next(n for n, (a, b) in enumerate(zip(*both, strict=False)) if a != b)
        rows.append((both[LABELS.index(label)], given))

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    longest = max(len(ids) for ids, _ in rows)
    inputs = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    targets = torch.tensor(
        [[-100] * n + ids[n:] + [-100] * (longest - len(ids)) for ids, n in rows]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(400):
        loss = model(input_ids=inputs, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.005:
            break
    folder = tmp_path_factory.mktemp("chat_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
