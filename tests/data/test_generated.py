import itertools
import json
import pickle
import re
import shutil
from random import Random

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertTokenizer,
    ByT5Tokenizer,
    DebertaV2Tokenizer,
    RobertaTokenizer,
)

from kd.data.augment import Mixed, WordDrop, vary_texts
from kd.data.generated import BackTranslation, Contextual, _load
from kd.data.sentence import cut, is_plain
from kd.data.variants import Augmentation, make_variants
from kd.errors import ConfigError
from kd.types import Row
from kd.vocabulary import train_wordpiece
from tests.conftest import FAMILIES
from tests.data.test_sentence import AWKWARD

CLASSES = (
    ["red", "blue", "green", "black", "white"],
    ["dog", "cat", "cow", "hen", "pig"],
    ["sleeps", "runs", "eats", "sings", "jumps"],
)
TEXTS = [" ".join(words) for words in itertools.product(["the", "a"], *CLASSES)]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
}
KINDS = {"wordpiece": "bert", "byte-level": "roberta", "sentencepiece": "deberta-v2"}
TWEET = (
    "@anna the red dog runs :) https://t.co/red #dog isn't the blue cow but "
    "the very black hen sings 😀 at 9"
)

every_kind = pytest.mark.parametrize("kind", KINDS)


def byte_level(texts, size):
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator(texts, size, special_tokens=special, show_progress=False)
    state = json.loads(trainer.to_str())["model"]
    return RobertaTokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])


def sentencepiece(words):
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = [(piece, 0.0) for piece in special] + [(f"▁{word}", -3.0) for word in words]
    return DebertaV2Tokenizer(vocab=vocab + [(letter, -9.0) for letter in letters])


def tokenizer_of(kind):
    if kind == "wordpiece":
        return train_wordpiece(TEXTS, 200)
    if kind == "byte-level":
        return byte_level([f" {text}" for text in TEXTS], 330)
    return sentencepiece(["the", "a", *itertools.chain(*CLASSES)])


def config_of(family, tokenizer, **changes):
    return AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **changes,
    )


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model, batch, steps):
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(steps):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def trained_to_fill(tokenizer, family):
    """A model that knows which class of words stands where."""
    torch.manual_seed(0)
    texts = tokenizer(TEXTS, padding=True, return_tensors="pt")
    special = torch.tensor(tokenizer.all_special_ids)

    def batch():
        rows = torch.randint(len(TEXTS), (64,))
        ids = texts["input_ids"][rows]
        hidden = (torch.rand(ids.shape) < 0.4) & ~torch.isin(ids, special)
        return {
            "input_ids": ids.masked_fill(hidden, tokenizer.mask_token_id),
            "attention_mask": texts["attention_mask"][rows],
            "labels": ids.masked_fill(~hidden, -100),
        }

    config = config_of(family, tokenizer, **SIZES)
    return train(AutoModelForMaskedLM.from_config(config), batch, 150)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A trained model for each kind of tokenizer."""
    found = {}
    for kind, family in KINDS.items():
        tokenizer = tokenizer_of(kind)
        folder = tmp_path_factory.mktemp("masked") / kind
        found[kind] = str(save(folder, trained_to_fill(tokenizer, family), tokenizer))
    return found


def fresh_copy(folder, path):
    """The same model where none was loaded before."""
    shutil.copytree(folder, path)
    return path


def variants(augmenter, text, count=40):
    sentence = cut(text)
    made = augmenter.vary([sentence] * count, [Random(seed) for seed in range(count)])
    return [sentence.text for sentence in made]


def one_sentence(error):
    """A message is one line, of sensible length, that ends in a full stop."""
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and ". " not in text and len(text) < 400


# What the model expects


@every_kind
def test_a_word_is_replaced_by_one_of_the_likeliest(folders, kind):
    made = variants(Contextual(folders[kind], candidates=4), "the red dog runs", 200)
    for place, words in enumerate(CLASSES, start=1):
        old = "the red dog runs".split()[place]
        new = {text.split()[place] for text in made}
        assert new == set(words), "the old one, and in its place each of the four that fit"
        assert sum(text.split()[place] != old for text in made) > 20
    assert {
        sum(a != b for a, b in zip(t.split(), "the red dog runs".split(), strict=True))
        for t in made
    } == {1}


@every_kind
def test_the_only_candidate_is_the_likeliest_other_word(folders, kind):
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    model = AutoModelForMaskedLM.from_pretrained(folders[kind]).eval()
    ids = tokenizer("the red dog runs", return_tensors="pt")["input_ids"]
    ids[0, 3] = tokenizer.mask_token_id
    with torch.no_grad():
        order = model(input_ids=ids).logits[0, 3].argsort(descending=True).tolist()
    words = [tokenizer.decode([number]).strip() for number in order]
    best = next(word for word in words if word in CLASSES[1] and word != "dog")
    made = variants(Contextual(folders[kind], candidates=1), "the red dog runs")
    assert {text.split()[2] for text in made} == {"dog", best}


@every_kind
def test_words_of_a_sentence_are_masked_together(folders, kind):
    for text in variants(Contextual(folders[kind], share=0.75, candidates=4), "the red dog runs"):
        words = text.split()
        changed = [a != b for a, b in zip(words, "the red dog runs".split(), strict=True)]
        assert sum(changed) == 3
        assert all(word in CLASSES[i] for i, word in enumerate(words[1:]))


@every_kind
def test_a_word_of_several_pieces_is_replaced_by_the_nearest(folders, tmp_path, kind):
    folder = fresh_copy(folders[kind], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    pieces = tokenizer("Reddish", add_special_tokens=False)["input_ids"]
    near = [
        tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("pig", "hen")
    ]
    assert len(pieces) > 1
    assert not set(pieces) & set(near)
    table = model.get_input_embeddings().weight.data
    mean = functional.normalize(table[pieces].mean(0), dim=0)
    table[near[0]] = 0.01 * mean  # near by direction, whatever the length
    table[near[1]] = 0.01 * mean + 0.0001 * functional.normalize(torch.randn(16), dim=0)
    save(folder, model, tokenizer)
    nearest = variants(Contextual(str(folder), share=1.0, candidates=1), "Reddish")
    assert set(nearest) == {"Pig"}
    assert set(variants(Contextual(str(folder), share=1.0, candidates=2), "Reddish")) == {
        "Pig",
        "Hen",
    }


@every_kind
def test_neither_order_nor_batches_nor_global_chance_decide(folders, kind):
    texts = [
        *TEXTS[::17],
        TWEET,
        "reddish",
        "😀",
        *AWKWARD[:9],
        *(f"{text}, {text}" for text in TEXTS[::31]),
    ]
    sentences = [cut(text) for text in texts] * 2

    def made(augmenter, order):
        varied = augmenter.vary([sentences[i] for i in order], [Random(i) for i in order])
        return [sentence.text for _, sentence in sorted(zip(order, varied, strict=True))]

    forth = list(range(len(sentences)))
    state = torch.get_rng_state()
    wanted = made(Contextual(folders[kind], candidates=4), forth)
    assert torch.equal(torch.get_rng_state(), state)
    assert wanted[: len(texts)] != wanted[len(texts) :]
    for size in (1, 7, 1000):
        torch.manual_seed(size)
        augmenter = Contextual(folders[kind], candidates=4, batch_size=size)
        assert made(augmenter, forth) == wanted
        assert made(augmenter, forth[::-1]) == wanted
    alone = [made(Contextual(folders[kind], candidates=4), [i])[0] for i in forth]
    assert alone == wanted


# What may not change


@every_kind
def test_what_is_protected_stays(folders, kind):
    sentence = cut(TWEET)
    made = Contextual(folders[kind], share=1.0).vary(
        [sentence] * 20, [Random(i) for i in range(20)]
    )
    fixed = set(range(len(sentence.pieces))) - set(sentence.free)
    assert {"@anna", "https://t.co/red", "#dog", "isn't", "cow", "very", "😀", "9"} <= {
        sentence.pieces[i] for i in fixed
    }
    for new in made:
        assert new.free == sentence.free
        assert [new.pieces[i] for i in fixed] == [sentence.pieces[i] for i in fixed]
        assert all(new.pieces[i] != sentence.pieces[i] for i in sentence.free)


@every_kind
def test_the_case_of_a_word_is_kept(folders, kind):
    for text in variants(Contextual(folders[kind], share=1.0), "The red DOG runs"):
        words = text.split()
        assert words[0].istitle()
        assert words[1].islower()
        assert words[2].isupper()


@every_kind
@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:12]))
def test_awkward_texts_come_through(folders, kind, text):
    sentence = cut(text)
    (new,) = Contextual(folders[kind]).vary([sentence], [Random(0)])
    assert len(new.pieces) == len(sentence.pieces)
    free = set(sentence.free)
    assert all(
        new.pieces[i].isalpha() if i in free else new.pieces[i] == piece
        for i, piece in enumerate(sentence.pieces)
    )


def test_pieces_that_were_taken_out_are_no_words(folders):
    sentence = cut("the red dog runs")
    shorter = sentence.without({sentence.free[0], sentence.free[2]})
    (new,) = Contextual(folders["wordpiece"], share=1.0, candidates=4).vary([shorter], [Random(0)])
    first, second = new.text.split()
    assert first != "red"
    assert second != "runs"


@every_kind
def test_only_what_the_model_reads_of_a_long_text_changes(folders, kind):
    sentence = cut(" ".join(TEXTS[:50]))
    (new,) = Contextual(folders[kind], share=0.5, candidates=4).vary([sentence], [Random(0)])
    changed = [i for i in sentence.free if new.pieces[i] != sentence.pieces[i]]
    assert max(changed) <= sentence.free[61], "64 tokens, two of them special"
    assert len(changed) == 31
    cut_off = cut(" ".join(["dog"] * 61 + ["reddish"]))
    (new,) = Contextual(folders[kind], share=1.0).vary([cut_off], [Random(0)])
    assert new.text.split().count("dog") == 0
    assert new.text.endswith("reddish"), "its first piece is read, its last one is not"


FORBIDDEN = ["not", "very", "##s", "x1", "e.g", "[SEP]", "unknown"]


def test_no_candidate_is_a_piece_a_mark_or_a_loaded_word(tmp_path):
    special = ["[PAD]", "unknown", "[CLS]", "[SEP]", "[MASK]"]
    words = ["the", "dog", "Dog", "DOG", "cat", "Paris", "s"]
    vocab = [*special, *words, *FORBIDDEN[:-2]]
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=False, unk_token="unknown"
    )
    model = BertForMaskedLM(config_of("bert", tokenizer, **SIZES))
    with torch.no_grad():
        for number, word in enumerate(vocab):
            model.cls.predictions.bias[number] = 50.0 if word in FORBIDDEN else -number
    folder = str(save(tmp_path / "model", model, tokenizer))
    made = variants(Contextual(folder, share=1.0), "dog")
    assert set(made) == {"the", "cat", "Paris", "s"}
    assert set(variants(Contextual(folder, candidates=2, share=1.0), "dog")) == {"the", "cat"}
    assert set(variants(Contextual(folder, candidates=2, share=1.0), "Dog")) == {"The", "Cat"}


@every_kind
def test_a_candidate_is_one_piece_that_begins_a_word(folders, kind):
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    made = variants(Contextual(folders[kind], share=1.0, candidates=1000), "dog", 300)
    words = [f" {word}" for word in set(made)]
    assert len(words) > 15
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert {len(pieces) for pieces in ids} == {1}


def test_a_vocabulary_without_words_changes_nothing(tmp_path):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "not", "##s", "7"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(vocab)})
    model = BertForMaskedLM(config_of("bert", tokenizer, **SIZES))
    folder = str(save(tmp_path / "model", model, tokenizer))
    assert set(variants(Contextual(folder), "the dog runs")) == {"the dog runs"}


# Loading


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_encoder_fills_masks(tmp_path, tokenizer, family):
    model = AutoModelForMaskedLM.from_config(config_of(family, tokenizer, **FAMILIES[family]))
    augmenter = Contextual(str(save(tmp_path / "model", model.bfloat16(), tokenizer)))
    augmenter.prepare()
    made = variants(augmenter, "what a wonderful and happy day")
    assert len(set(made)) > 10
    model, *_ = _load("Contextual.path", augmenter.path, AutoModelForMaskedLM)
    assert model.dtype == torch.float32
    assert all(len(text.split()) == 6 and all(map(is_plain, text.split())) for text in made)


def test_what_is_not_asked_needs_no_model():
    for augmenter in (Contextual("nowhere"), BackTranslation("nowhere", "nowhere")):
        assert augmenter.vary([], []) == []
        assert set(variants(augmenter, "https://t.co/a 😀")) == {"https://t.co/a 😀"}


def test_preparing_reads_no_weights(folders, tmp_path):
    folder = fresh_copy(folders["wordpiece"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    augmenter = Contextual(str(folder))
    augmenter.prepare()
    with pytest.raises(ConfigError, match=r"Contextual.path=.*model\) cannot be used") as error:
        variants(augmenter, "the dog")
    assert one_sentence(error)


@pytest.mark.parametrize("path", ["nowhere", "some-one/not-fetched", "/no/folder/at/all", "."])
def test_a_model_that_is_not_there_is_named_in_one_sentence(path):
    with pytest.raises(ConfigError, match=r"augmenters \(Contextual.path=") as error:
        Contextual(path).prepare()
    assert one_sentence(error)
    assert "hub id" in str(error.value)
    with pytest.raises(ConfigError, match=r"augmenters \(BackTranslation.backward=") as error:
        BackTranslation(path, path)._translations("backward", ["a text"])
    assert one_sentence(error)


def test_a_model_for_another_task_is_refused(folders, make_model, tmp_path, tokenizer):
    with pytest.raises(
        ConfigError, match="BackTranslation.forward=.*this bert is no model that translates"
    ) as error:
        BackTranslation(folders["wordpiece"], folders["wordpiece"]).prepare()
    assert one_sentence(error)
    classifier = Contextual(str(make_model()))
    classifier.prepare()
    with pytest.raises(ConfigError, match="its weights lack cls.predictions") as error:
        variants(classifier, "a day")
    assert one_sentence(error)


def test_a_tokenizer_without_mask_or_offsets_is_refused(folders, tmp_path):
    folder = fresh_copy(folders["wordpiece"], tmp_path / "no_mask")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="bert is no model that fills masks") as error:
        Contextual(str(folder)).prepare()
    assert one_sentence(error)
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="no fast version") as error:
        Contextual(str(folder)).prepare()
    assert one_sentence(error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Contextual(candidates=0),
        lambda: Contextual(share=0.0),
        lambda: BackTranslation(beams=0),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(ConfigError) as error:
        make()
    assert one_sentence(error)


# What makes two augmenters the same


def test_description_follows_the_files_and_nothing_that_does_not_matter(folders, tmp_path):
    folder = fresh_copy(folders["wordpiece"], tmp_path / "model")
    augmenter = Contextual(str(folder))
    before = augmenter.describe()
    variants(augmenter, "the dog")
    assert augmenter.describe() == before
    assert json.loads(json.dumps(before)) == before
    assert Contextual(str(folder), batch_size=1).describe() == before
    assert Contextual(str(folder), candidates=3).describe() != before
    (folder / "README.md").write_text("a note")
    assert augmenter.describe() == before
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    save(folder, BertForMaskedLM(config_of("bert", tokenizer, **SIZES)), tokenizer)
    assert augmenter.describe() != before
    both = BackTranslation(str(folder), "a/hub-id")
    assert both.describe()["files"] == augmenter.describe()["files"]
    assert BackTranslation("a/hub-id", "a/hub-id").describe()["files"] == {}


def test_the_model_is_no_part_of_the_augmenter(folders):
    augmenter = Contextual(folders["wordpiece"])
    before = dict(vars(augmenter))
    variants(augmenter, "the dog")
    assert vars(augmenter) == before
    assert len(pickle.dumps(augmenter)) < 1000


def test_it_is_an_augmenter_among_others(folders):
    contextual = Contextual(folders["wordpiece"], candidates=4)
    chain = [WordDrop(), Mixed([contextual, WordDrop()])]
    assert chain[1].loads_model
    first = vary_texts(TEXTS[:20], [3] * 20, chain, ["red dog"])
    assert first == vary_texts(TEXTS[:20], [3] * 20, chain, ["red dog"])
    assert all(len(set(made)) == 3 for made in first)


# Translating back

FORTH = {  # every sentence has as many translations as the beams that are asked for
    "we saw a lovely film today": ["wir sahen einen film", "wir haben ihn gesehen"],
    "look at it https://t.co/a1 #fun": ["sieh https://t.co/a1 #fun an", "schau mal #fun"],
    "the rain stops at 9 @anna": ["der regen endet", "der regen hört auf"],
    "it is not good but fine": ["es ist gut", "es ist nicht gut"],
    "the house is big": ["das haus ist groß", "das ist ein haus"],
    "the day was long": ["der tag war lang", "ein langer tag"],
    "He was happy!": ["Er war froh!", "Er freute sich!"],
    "the sun is up": ["la " * 40, "lo " * 40],
}
BACK = {
    "wir sahen einen film": ["we saw a nice film today", "we saw a fine film today"],
    "wir haben ihn gesehen": ["we have seen it today", "we saw it"],
    "sieh https://t.co/a1 #fun an": ["see it https://t.co/a1 #fun", "#fun https://t.co/a1"],
    "schau mal #fun": ["look at #fun", "see #fun"],
    "der regen endet": ["the rain ends", "rain ends at 9"],
    "der regen hört auf": ["the rain stops", "it stops @anna"],
    "es ist gut": ["it is good but fine", "it is fine"],
    "es ist nicht gut": ["it is bad but fine", "it is not bad"],
    "das haus ist groß": ["the house is very big", "the house is quite big"],
    "das ist ein haus": ["this is not a house", "a house is never big"],
    "der tag war lang": ["the day was long", "the day took long"],
    "ein langer tag": ["the day was long", "a long day"],
    "Er war froh!": ["He was glad!", "He was glad."],
    "Er freute sich!": ["He felt glad!", "He felt glad"],
}


def trained_to_translate(pairs, tokenizer):
    """A model that knows these sentences by heart."""
    torch.manual_seed(0)
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}
    config = config_of(
        "bart",
        tokenizer,
        d_model=32,
        max_position_embeddings=64,
        dropout=0.0,
        decoder_start_token_id=tokenizer.sep_token_id,
        forced_eos_token_id=tokenizer.sep_token_id,
        **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sizes.items()},
    )
    both = [(source, target) for source, targets in pairs.items() for target in targets]
    sources, targets = (
        tokenizer(list(side), padding=True, return_tensors="pt", return_token_type_ids=False)
        for side in zip(*both, strict=True)
    )
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
    return train(BartForConditionalGeneration(config), lambda: {**sources, "labels": labels}, 120)


@pytest.fixture(scope="module")
def translators(tmp_path_factory):
    texts = [*FORTH, *BACK, *itertools.chain(*FORTH.values()), *itertools.chain(*BACK.values())]
    tokenizer = sentencepiece(sorted({word for text in texts for word in text.split()}))
    folder = tmp_path_factory.mktemp("translators")
    models = {"forward": FORTH, "backward": BACK}
    return {
        name: str(save(folder / name, trained_to_translate(pairs, tokenizer), tokenizer))
        for name, pairs in models.items()
    }


SEEN, LONG = "we saw a lovely film today", "the day was long"
WANTED = {
    SEEN: {*BACK["wir sahen einen film"], *BACK["wir haben ihn gesehen"]},
    LONG: {"the day took long", "a long day"},
    "look at it https://t.co/a1 #fun": {"see it https://t.co/a1 #fun"},  # in this order
    "He was happy!": {"He was glad!", "He felt glad!"},
    "the rain stops at 9 @anna": set(),  # the number or the mention is lost
    "it is not good but fine": set(),  # the negation or what it turns round is lost
    "the house is big": set(),  # an intensifier or a negation is new
}


def test_each_draw_takes_one_of_the_translations(translators):
    assert set(variants(BackTranslation(**translators, beams=2), SEEN)) == WANTED[SEEN]
    once = set(variants(BackTranslation(**translators, beams=1), SEEN))
    assert len(once) == 1
    assert once < WANTED[SEEN]


@pytest.mark.parametrize("text", WANTED)
def test_a_translation_that_loses_or_adds_what_counts_is_none(translators, text):
    made = set(variants(BackTranslation(**translators, beams=2), text))
    assert made - {text} == WANTED[text]
    assert text not in made or text not in (SEEN, LONG), "there is a better one for each"


def test_a_translation_is_cut_again_and_protects_what_was_protected(translators):
    sentence = cut(SEEN, re.compile("today"))
    made = BackTranslation(**translators, beams=2).vary(
        [sentence] * 20, [Random(i) for i in range(20)]
    )
    changed = [new for new in made if new != sentence]
    assert changed
    for new in changed:
        again = cut(new.text)
        assert new.pieces == again.pieces
        assert {again.pieces[i] for i in set(again.free) - set(new.free)} == {"today"}


def test_neither_order_nor_batches_decide_about_translations(translators):
    texts = [*FORTH, *AWKWARD[:9]]
    sentences = [cut(text) for text in texts] * 8

    def made(order, **settings):
        augmenter = BackTranslation(**translators, beams=2, **settings)
        varied = augmenter.vary([sentences[i] for i in order], [Random(i) for i in order])
        return [sentence.text for _, sentence in sorted(zip(order, varied, strict=True))]

    forth = list(range(len(sentences)))
    state = torch.get_rng_state()
    wanted = made(forth)
    assert torch.equal(torch.get_rng_state(), state)
    known = {new for old, new in zip(texts * 8, wanted, strict=True) if old in WANTED}
    assert known - set(texts) <= set().union(*WANTED.values())
    assert len(known - set(texts)) > 5
    assert made(forth[::-1]) == made(forth, batch_size=1) == made(forth, batch_size=3) == wanted
    assert [made([i])[0] for i in forth[: len(texts)]] == wanted[: len(texts)]


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:12]))
def test_awkward_texts_come_back(translators, text):
    sentence = cut(text)
    (new,) = BackTranslation(**translators, beams=2).vary([sentence], [Random(0)])
    assert new.text.strip() or new == sentence
    assert new == sentence or len(text) < 100


def test_a_text_that_the_model_cannot_read_to_its_end_stays(translators):
    text = " ".join([SEEN] * 12)
    assert set(variants(BackTranslation(**translators), text)) == {text}


def test_a_translation_without_end_harms_no_other_of_its_batch(translators):
    texts = [LONG, "the sun is up"]  # of one length
    found = BackTranslation(**translators, beams=2)._translations("forward", texts)
    assert found[LONG] == sorted(FORTH[LONG])
    assert not any("la la la" in text for text in found["the sun is up"])


@pytest.mark.parametrize("word", ["nice", "[SEP]"])
def test_a_model_that_never_ends_or_never_speaks_changes_nothing(translators, tmp_path, word):
    folder = fresh_copy(translators["backward"], tmp_path / "model")
    model = BartForConditionalGeneration.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.final_logits_bias[0, tokenizer(word, add_special_tokens=False)["input_ids"][0]] = 1e4
    save(folder, model, tokenizer)
    broken = BackTranslation(translators["forward"], str(folder), beams=2)
    assert set(variants(broken, SEEN)) == {SEEN}


def test_translators_are_found_before_they_are_needed(translators):
    BackTranslation(**translators).prepare()
    with pytest.raises(ConfigError, match="BackTranslation.backward=nowhere") as error:
        BackTranslation(translators["forward"], "nowhere").prepare()
    assert one_sentence(error)


def test_the_model_is_freed_when_all_variants_are_made(folders):
    plan = Augmentation([Mixed([Contextual(str(folders["wordpiece"]))])])
    assert make_variants([Row(0, TEXTS[0], 0)], plan, ("a", "b")).rows
    assert _load.cache_info().currsize == 0
