import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from kd.errors import ModelError
from kd.pruning import prune
from kd.vocabulary import digest, train_wordpiece
from tests.conftest import TEXTS

CORPUS = [*TEXTS, "unhappiness is unlovely", "he loved stories, films & foods in 1999"] * 5
USED = ["I love this film", "a happy, happy day & story 1999"]
OTHER = ["the terrible bore was rude", "zebra ☃ 日本 quux", "", "happyday", "ÉÀ\t\nfilm"]
LETTERS = sorted(set("".join(CORPUS)))
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def numbered(tokens):
    return {token: number for number, token in enumerate(tokens)}


def wordpiece():
    return train_wordpiece(CORPUS, 200)


def byte_level(alphabet=True):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL[:-1],
        initial_alphabet=letters,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def roberta():
    model = json.loads(byte_level().to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    vocabulary = {**model["vocab"], "<mask>": len(model["vocab"])}
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def modernbert():
    """A generic class, a processor of two parts, special tokens at the end."""
    backend = byte_level()
    backend.add_special_tokens(["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[NAMELESS]"])
    backend.add_tokens(["@user", "http", "love"])
    template = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def suffixed():
    """Merges of letters with an end of word, and special tokens behind, as in CLIP."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = BpeTrainer(
        vocab_size=150, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", backend.token_to_id("</s>")), ("<s>", backend.token_to_id("<s>"))
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


def prefixed():
    """BPE whose pieces inside of a word carry a prefix."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = BpeTrainer(
        vocab_size=150, special_tokens=SPECIAL, continuing_subword_prefix="##", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


def pieces(first):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=150, special_tokens=first, unk_token=first[3], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return [tuple(piece) for piece in json.loads(backend.to_str())["model"]["vocab"]]


def unigram():
    return XLMRobertaTokenizer(vocab=[*pieces(SPECIAL[:-1]), ("<mask>", 0.0)])


def debertav2():
    tokenizer = DebertaV2Tokenizer(vocab=pieces(["[PAD]", "[CLS]", "[SEP]", "[UNK]"]))
    assert tokenizer.mask_token_id == len(tokenizer) - 1  # added behind the pieces
    return tokenizer


def fallback():
    """Pieces and bytes, with the unknown one at the end."""
    vocabulary = [
        *pieces(SPECIAL[:-1])[4:],
        *((f"<0x{number:02X}>", -9.0) for number in range(256)),
    ]
    vocabulary += [(token, 0.0) for token in SPECIAL]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=len(vocabulary) - 2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


def words():
    vocabulary = SPECIAL + sorted({word for text in CORPUS for word in text.split()})
    backend = Tokenizer(models.WordLevel(numbered(vocabulary), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


KINDS = {
    kind.__name__: kind
    for kind in (
        wordpiece, roberta, modernbert, suffixed, prefixed, unigram, fallback, debertav2, words
    )
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


def cut(tokenizer, texts, pairs=None):
    numbers = tokenizer(texts, pairs)["input_ids"]
    return [tokenizer.convert_ids_to_tokens(row) for row in numbers]


# The law


@kinds
def test_used_texts_are_cut_as_before_and_others_still_encode(kind):
    whole = KINDS[kind]()
    before = whole.backend_tokenizer.to_str()
    pruned, rows = prune(whole, USED)
    assert len(pruned) == len(rows) < len(whole)
    assert type(pruned) is type(whole)
    assert cut(pruned, USED) == cut(whole, USED)
    assert cut(pruned, USED, USED[::-1]) == cut(whole, USED, USED[::-1])
    assert whole.backend_tokenizer.to_str() == before
    for text in [*OTHER, *LETTERS, " ".join(LETTERS), "".join(LETTERS)]:
        numbers = pruned(text)["input_ids"]
        assert max(numbers, default=0) < len(rows)
        if whole.unk_token_id not in whole(text)["input_ids"] and kind != "words":
            assert pruned.unk_token_id not in numbers


@kinds
def test_rows_are_the_old_numbers_of_the_same_tokens(kind):
    whole = KINDS[kind]()
    pruned, rows = prune(whole, USED)
    assert sorted(pruned.get_vocab().values()) == list(range(len(rows)))
    old, new = whole.get_vocab(), pruned.get_vocab()
    assert [old[token] for token in sorted(new, key=new.get)] == rows
    for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        assert getattr(pruned, name) == getattr(whole, name)
        if getattr(whole, name):
            assert rows[getattr(pruned, f"{name}_id")] == getattr(whole, f"{name}_id")
    assert pruned.pad_token_id == whole.pad_token_id or whole.pad_token_id > len(rows) - 5
    assert pruned.all_special_tokens == whole.all_special_tokens


@kinds
def test_saved_tokenizer_is_the_same_again(kind, tmp_path):
    pruned, _ = prune(KINDS[kind](), USED)
    pruned.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert digest(again) == digest(pruned)
    assert again(USED + OTHER)["input_ids"] == pruned(USED + OTHER)["input_ids"]
    assert prune(again, USED)[1] == list(range(len(pruned)))  # nothing is left to drop


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(sorted(KINDS)))
def test_law_holds_for_any_texts(seed, kind):
    random.seed(seed)
    alphabet = [*LETTERS, " ", " ", "☃", "ß", *(word + " " for word in CORPUS[9].split())]
    texts = ["".join(random.choices(alphabet, k=random.randint(0, 20))) for _ in range(4)]
    whole = KINDS[kind]()
    pruned, _ = prune(whole, [*texts, "a"])
    assert cut(pruned, texts) == cut(whole, texts)


def test_bytes_keep_every_text_whole():
    pruned, _ = prune(modernbert(), ["love"])
    for text in OTHER:
        assert pruned.decode(pruned(text, add_special_tokens=False)["input_ids"]) == text


# What is kept


def test_unused_tokens_go_and_letters_stay():
    pruned, _ = prune(wordpiece(), ["I love this film"])
    vocabulary = pruned.get_vocab()
    assert {"love", "this", "film", "z" if "z" in LETTERS else "a", "##a"} <= set(vocabulary)
    long = {token for token in vocabulary if len(token.removeprefix("##")) > 1}
    assert long == {"love", "this", "film", *pruned.all_special_tokens}


def test_merges_are_those_that_lead_to_a_kept_token():
    pruned, _ = prune(modernbert(), ["happy"])
    model = json.loads(pruned.backend_tokenizer.to_str())["model"]
    made = {"".join(pair) for pair in model["merges"]}
    assert {token for token in cut(pruned, ["happy"])[0][1:-1] if len(token) > 1} <= made
    assert len(made) > 1
    assert all(token in "happy" for token in made)
    assert {part for pair in model["merges"] for part in pair} <= set(model["vocab"])


def test_rare_tokens_fall_into_pieces():
    texts = ["film film story", "film story day"]
    vocabularies = [set(prune(wordpiece(), texts, count)[0].get_vocab()) for count in (1, 2, 3)]
    assert [{"film", "story", "day"} & kept for kept in vocabularies] == [
        {"film", "story", "day"},
        {"film", "story"},
        {"film"},
    ]
    assert cut(prune(wordpiece(), texts, 3)[0], ["day"])[0][1:-1] == ["d", "##a", "##y"]


def test_counts_are_of_all_texts_however_many():
    texts = ["film"] * 999 + ["day", "story", "love"]  # the last ones are a chunk of their own
    kept = set(prune(wordpiece(), texts)[0].get_vocab())
    assert {"film", "day", "story", "love"} <= kept


def test_added_tokens_stay_if_used_or_special():
    pruned, _ = prune(modernbert(), ["i love @user"])
    assert set(pruned.get_added_vocab()) - set(SPECIAL) == {
        "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[NAMELESS]", "@user", "love"
    }  # fmt: skip
    assert cut(pruned, ["@user http"])[0][1] == "@user"
    assert "http" not in cut(pruned, ["@user http"])[0]


def test_named_numbers_are_kept():
    whole = wordpiece()
    number = whole.convert_tokens_to_ids("terrible")
    assert "terrible" in prune(whole, USED, keep=[number, 10**6])[0].get_vocab()
    assert "terrible" not in prune(whole, USED)[0].get_vocab()


def test_number_of_the_padding_stays():
    """RoBERTa's positions start behind it."""
    pieces = ["a", "##a", "film", "unused", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    whole = BertTokenizer(vocab=numbered(pieces))
    pruned, rows = prune(whole, ["film"])
    assert pruned.pad_token_id == whole.pad_token_id == 4
    assert rows == [0, 1, 2, 5, 4, 6, 7, 8]


# Traps


def test_unreadable_words_stay_unreadable():
    """WordPiece reads ``ab`` and then nothing; without ``ab`` it would read ``a`` and ``##bc``."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "ab", "##bc", "x"]
    whole = BertTokenizer(vocab=numbered(pieces))
    assert cut(whole, ["abc"])[0][1:-1] == ["[UNK]"]
    pruned, _ = prune(whole, ["abc xbc abc"])
    assert cut(pruned, ["abc xbc"])[0][1:-1] == ["[UNK]", "x", "##bc"]
    for text in ("xbc", "xbc " + "ab" * 60):  # too long a word is not even tried
        assert "ab" not in prune(whole, [text])[0].get_vocab()


def test_penalty_of_unknown_letters_stays():
    """It is measured from the lowest score: without ``zz`` an unknown letter would be cheaper."""
    vocabulary = [(token, 0.0) for token in SPECIAL]
    vocabulary += [("▁", -1.0), ("b", -30.0), ("c", -30.0), ("d", -30.0), ("☃b", -30.0)]
    vocabulary += [("bcd", -1.0), ("zz", -100.0), ("yy", -50.0)]
    whole = XLMRobertaTokenizer(vocab=vocabulary)
    pruned, _ = prune(whole, ["☃bcd", "bcd"])
    assert "yy" not in pruned.get_vocab()
    assert cut(whole, ["☃bcd"]) == [["<s>", "▁", "☃b", "c", "d", "</s>"]]
    assert cut(pruned, ["☃bcd"]) == cut(whole, ["☃bcd"])


def test_stored_padding_has_no_old_number():
    whole = modernbert()
    whole.backend_tokenizer.enable_padding(pad_id=whole.pad_token_id, pad_token="[PAD]", length=9)
    pruned, rows = prune(whole, USED)
    padded = pruned(["a", "a b c d"], padding=True)["input_ids"]
    assert padded[0][-1] == pruned.pad_token_id == rows.index(whole.pad_token_id)
    assert max(pruned.backend_tokenizer.encode("a").ids) < len(pruned)


def test_settings_survive():
    whole = wordpiece()
    whole.model_max_length = 77
    pruned, _ = prune(whole, USED)
    assert pruned.model_max_length == 77
    cased = BertTokenizer(vocab={**whole.get_vocab(), "Film": len(whole)}, do_lower_case=False)
    assert cut(prune(cased, ["Film"])[0], ["Film film"])[0][1] == "Film"
    assert "Film" in prune(cased, ["Film"])[0].get_vocab()


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_no_text_is_refused(texts):
    with pytest.raises(ModelError, match="no text to prune a vocabulary by"):
        prune(wordpiece(), texts)
