from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.errors import ConfigError, RunError
from kd.rationales.annotators import Question, Reply
from kd.rationales.local import LocalAnnotator
from kd.rationales.prompts import Prompt
from tests.conftest import MakeModel
from tests.rationales.conftest import LABELS, PROMPT, REVIEWS

QUESTIONS = [Question(text) for text, _ in REVIEWS]
UNKNOWN = "the worst and a charming tale"


def replies(
    annotator: LocalAnnotator, questions: Sequence[Question], labels: Sequence[str] = LABELS
) -> list[Reply]:
    found: dict[Question, Reply] = {}
    annotator.answer(questions, labels, found.__setitem__)
    return [found[question] for question in questions]


@pytest.fixture
def local(chat_model: Path) -> Callable[..., LocalAnnotator]:
    def make(path: Path = chat_model, prompt: Prompt = PROMPT, **options) -> LocalAnnotator:
        return LocalAnnotator(str(path), prompt, **{"max_tokens": 60, "device": "cpu", **options})

    return make


@pytest.fixture
def copied(chat_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(chat_model, tmp_path / "copy")


def test_every_review_is_explained(local):
    for (text, label), reply in zip(REVIEWS, replies(local(), QUESTIONS), strict=True):
        assert (reply.status, reply.label) == ("ok", label)
        assert reply.evidence[0] in text
        assert reply.rationale.startswith(reply.evidence[0])
        assert json.loads(reply.raw)["label"] == label
        assert 0.9 < reply.confidence < 1.0
        assert reply.confidence_source == "decision"


def test_tokens_are_counted_and_foretold(local, chat_model):
    annotator = local(max_tokens=61)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    for question, reply in zip(QUESTIONS, replies(annotator, QUESTIONS), strict=True):
        assert annotator.tokens(question, LABELS) == (reply.prompt_tokens, 31)
        written = tokenizer(reply.raw, add_special_tokens=False)["input_ids"]
        assert reply.completion_tokens == len(written) + 1  # and the end


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_batch_changes_no_answer(local, temperature):
    questions = [*QUESTIONS[::3], Question("a film"), Question(f"{UNKNOWN}, and {UNKNOWN}")]
    alone = replies(local(batch_size=1, temperature=temperature), questions)
    for size in (3, 8):
        together = replies(local(batch_size=size, temperature=temperature), questions[::-1])
        assert together[::-1] == alone


def test_draws_follow_seed_text_and_sample_and_nothing_else(local):
    def said(seed: int, text: str, sample: int) -> str:
        annotator = local(temperature=1e6, samples=2, seed=seed, max_tokens=8)  # draws alone
        return replies(annotator, [Question(text, sample)])[0].raw

    before = torch.get_rng_state()
    first = said(0, "a", 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert said(0, "a", 0) == first
    assert len({first, said(1, "a", 0), said(0, "b", 0), said(0, "a", 1)}) == 4


def test_draws_follow_the_softened_probabilities_of_the_model(local, chat_model):
    annotator = local(temperature=2.5, samples=500, max_tokens=1, batch_size=250)
    drawn = Counter(
        reply.raw for reply in replies(annotator, [Question("a", n) for n in range(500)])
    )
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    ids = tokenizer("<system>Reply with JSON.<user>a<assistant>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = (model(ids).logits[0, -1] / 2.5).softmax(-1)
    likeliest = int(expected.argmax())
    assert 0.1 < expected[likeliest] < 0.9
    share = drawn[tokenizer.decode([likeliest])] / 500
    assert share == pytest.approx(float(expected[likeliest]), abs=0.07)  # three deviations


def test_confidence_is_the_probability_of_the_label_as_the_whole_answer(local, chat_model):
    labels = ("negative", "positive", "positively not", "n")
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    text, label = REVIEWS[3]
    scores = []
    for name in labels:
        whole = f'<system>Reply with JSON.<user>{text}<assistant>{{"label": "{name}"}}'
        ids = tokenizer(whole, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].log_softmax(-1)
        scores.append(logits.gather(1, ids[0, 1:, None]).sum())
    expected = torch.stack(scores).softmax(0)[labels.index(label)]
    (reply,) = replies(local(), [Question(text)], labels)
    assert reply.confidence == pytest.approx(float(expected), abs=1e-5)


def test_confidence_may_be_what_the_model_writes(local):
    (reply,) = replies(local(confidence="verbalised"), QUESTIONS[:1])
    assert (reply.confidence, reply.confidence_source) == (0.9, "verbalised")


def test_a_model_that_is_told_the_label_does_not_decide(local, copied):
    template = copied / "chat_template.jinja"  # the model was trained without being told
    template.write_text(template.read_text().replace("content }}", "content.split(' is ')[0] }}"))
    told = Prompt("Reply with JSON.", "$text is $label", source="rationalised")
    annotator = local(copied, told)
    assert annotator.tells_labels
    assert not local().tells_labels
    for reply in replies(annotator, [Question(text, label=label) for text, label in REVIEWS]):
        assert (reply.status, reply.confidence_source) == ("ok", "verbalised")


def test_an_answer_that_is_cut_off_is_no_answer(local):
    (reply,) = replies(local(max_tokens=20), QUESTIONS[:1])
    assert (reply.status, reply.label, reply.confidence) == ("truncated", None, None)
    assert reply.completion_tokens == 20


def test_a_text_beyond_the_models_limit_is_not_asked(local):
    long = Question("a film " * 600)
    first, second = replies(local(), [long, QUESTIONS[0]])
    assert first.status == "too_long"
    assert "1024 in all" in first.reason
    assert second.status == "ok"


def test_thoughts_that_the_template_opens_are_no_answer(local, copied):
    for file in (copied / "tokenizer.json", copied / "chat_template.jinja"):
        file.write_text(file.read_text().replace("<assistant>", "<think>"))
    (reply,) = replies(local(copied), QUESTIONS[:1])
    assert '"label": "positive"' in reply.raw
    assert (reply.status, reply.label) == ("truncated", None)


def test_questions_are_taken_as_they_can_be_worked_on(local):
    taken = []

    def asked():
        for number in range(1000):
            taken.append(number)
            yield Question(f"a film {number}")

    class Enough(Exception):
        pass

    def stop(question, reply):
        raise Enough

    with pytest.raises(Enough):
        local(max_tokens=1, batch_size=2).answer(asked(), LABELS, stop)
    assert len(taken) < 50


def test_what_the_folder_says_of_drawing_and_repetition_does_not_count(local, copied):
    config = copied / "generation_config.json"
    habits = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | habits))
    assert replies(local(copied), QUESTIONS) == replies(local(), QUESTIONS)


def test_a_full_memory_halves_the_batch_and_goes_on(local):
    annotator = local(batch_size=16)
    sizes = []

    def room_for_five(module, args, kwargs):
        rows = len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])
        sizes.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    annotator._network.register_forward_pre_hook(room_for_five, with_kwargs=True)
    assert [reply.label for reply in replies(annotator, QUESTIONS)] == [
        label for _, label in REVIEWS
    ]
    assert [size for size in sizes if size > 5] == [16, 8]


def test_a_memory_too_small_for_one_text_is_told(local):
    annotator = local()

    def no_room(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    annotator._network.register_forward_pre_hook(no_room)
    with pytest.raises(RunError, match="too little memory .* 14 tokens: give a smaller model"):
        replies(annotator, QUESTIONS)


def test_facts_name_all_that_decides_an_answer(local, copied):
    facts = local(copied).facts(LABELS)
    assert local(copied, batch_size=1, device="meta", samples=1).facts(LABELS) == facts
    assert json.loads(json.dumps(facts)) == facts
    others = [
        {"prompt": Prompt("Use JSON.", "$text")},
        {"max_tokens": 61},
        {"temperature": 0.5},
        {"dtype": "bfloat16"},
        {"revision": "main"},
        {"confidence": "verbalised"},
    ]
    assert all(local(copied, **other).facts(LABELS) != facts for other in others)
    assert local(copied, seed=1).facts(LABELS) == facts  # nothing is drawn
    assert local(copied).facts(LABELS[::-1]) != facts
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert local(copied).facts(LABELS) != facts


def test_facts_of_a_hub_id_ask_nobody(local):
    facts = local(Path("nobody/nothing"), revision="abc").facts(LABELS)
    assert (facts["model"], facts["revision"], facts["files"]) == ("nobody/nothing", "abc", None)


def test_a_model_without_a_chat_template_is_refused(local, copied):
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"path: the tokenizer of .*copy has no chat template;"):
        replies(local(copied), QUESTIONS)


def test_a_prompt_that_the_template_refuses_is_told(local, copied):
    (copied / "chat_template.jinja").write_text(
        "{{ raise_exception('no system message, please') }}"
    )
    with pytest.raises(ConfigError, match="refuses the prompt: no system message, please; change"):
        local(copied).tokens(QUESTIONS[0], LABELS)


def test_a_folder_that_is_none_is_refused(local, tmp_path):
    with pytest.raises(ConfigError, match="LocalAnnotator.path cannot be used: .*nowhere has no"):
        replies(local(tmp_path / "nowhere"), QUESTIONS)


def test_damaged_weights_are_refused(local, copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="LocalAnnotator.path=.*copy cannot be used"):
        replies(local(copied), QUESTIONS)


def test_a_classifier_is_no_chat_model(local, copied, make_model: MakeModel):
    for file in make_model().glob("*.safetensors"):
        shutil.copy(file, copied)
    with pytest.raises(ConfigError, match="cannot be used: its weights lack"):
        replies(local(copied), QUESTIONS)


def test_an_unknown_device_is_refused(local):
    with pytest.raises(ConfigError, match="cannot be used"):
        replies(local(device="abacus"), QUESTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: give at least 1"),
        ({"batch_size": 0}, "batch_size is 0: give at least 1"),
        ({"samples": 0}, "samples is 0: give at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1: give at least 0"),
        ({"samples": 3}, "at temperature 0 all answers to a text are the same"),
    ],
)
def test_values_out_of_range_are_refused(local, options, message):
    with pytest.raises(ConfigError, match=message):
        local(**options)
