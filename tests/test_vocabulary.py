import os
import subprocess
import sys
import unicodedata

import pytest
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import AutoTokenizer, BertTokenizer, CanineTokenizer, RobertaTokenizer

from kd.errors import ModelError
from kd.vocabulary import digest, load_tokenizer, reason, train_wordpiece
from tests.conftest import TEXTS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CORPUS = TEXTS * 20  # enough repetition for many merges of equal frequency


def pieces(tokenizer):
    """The vocabulary in the order of its ids."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


# Training


def test_trained_vocabulary_splits_its_own_texts():
    tokenizer = train_wordpiece(CORPUS, 150)
    assert pieces(tokenizer)[:5] == SPECIAL
    assert len(tokenizer) <= 150
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    for text in TEXTS:
        words = "".join(tokenizer.tokenize(text)).replace("##", "")
        assert words == text.replace(" ", "")
    assert "film" in tokenizer.get_vocab()
    assert tokenizer("i love", "film")["token_type_ids"][-2:] == [1, 1]


def test_trained_vocabulary_reads_any_case_and_accent():
    tokenizer = train_wordpiece(CORPUS, 150)
    assert tokenizer.tokenize("FÎLM") == tokenizer.tokenize("film") == ["film"]
    assert tokenizer.tokenize("film\u0001\t film") == ["film", "film"]
    assert tokenizer.tokenize("日") == ["[UNK]"]


def test_vocabulary_is_the_same_in_every_call():
    """The library's own trainer is not: it numbers pieces in the order of a random hash table."""
    first = pieces(train_wordpiece(CORPUS, 150))
    assert all(pieces(train_wordpiece(CORPUS, 150)) == first for _ in range(3))
    assert pieces(train_wordpiece(iter(CORPUS), 150)) == first
    assert pieces(train_wordpiece(list(reversed(CORPUS)), 150)) == first


def test_the_library_alone_gives_other_vocabularies():
    """If this fails the library has become deterministic, and kd can train in one pass."""

    def train():
        trainer = BertWordPieceTokenizer(lowercase=True)
        trainer.train_from_iterator(CORPUS, vocab_size=150, show_progress=False)
        return pieces(trainer)

    first = train()
    assert any(train() != first for _ in range(20))


def test_vocabulary_is_the_same_in_another_process():
    code = (
        "from kd.vocabulary import digest, train_wordpiece\n"
        "from tests.conftest import TEXTS\n"
        "print(digest(train_wordpiece(TEXTS * 20, 150)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"},
    )
    assert answer.stdout.strip() == digest(train_wordpiece(CORPUS, 150))


@pytest.mark.parametrize("size", [20, 40, 60, 100])
def test_size_is_an_upper_limit_even_below_the_alphabet(size):
    tokenizer = train_wordpiece(CORPUS, size)
    assert len(tokenizer) <= size
    assert set(pieces(tokenizer)[:5]) == set(SPECIAL)
    assert tokenizer.tokenize("e")[0] == "e"  # the most frequent letter


def test_rare_letters_are_left_out_and_always_the_same_ones():
    letters = [chr(0x4E00 + number) for number in range(1500)]  # each as rare as the others
    texts = ["".join(letters[start : start + 30]) for start in range(0, 1500, 10)]
    first = train_wordpiece(texts, 5000)
    kept = set(first.get_vocab()) & set(letters)
    assert len(kept) == 1000
    assert set(train_wordpiece(texts[::-1], 5000).get_vocab()) & set(letters) == kept


def test_accents_do_not_use_up_the_alphabet():
    tokenizer = train_wordpiece(["é" * 3 + " " + unicodedata.normalize("NFD", "é")] * 3, 50)
    assert "é" not in tokenizer.get_vocab()
    assert tokenizer.tokenize("éé") == tokenizer.tokenize("ee")


@pytest.mark.parametrize("texts", [[], [""], [" \n\t "]])
def test_no_text_is_refused(texts):
    with pytest.raises(ModelError, match="no text to train a vocabulary on"):
        train_wordpiece(texts, 100)


# Digests


def test_digest_is_of_what_a_tokenizer_does(tmp_path):
    tokenizer = train_wordpiece(CORPUS, 150)
    before = digest(tokenizer)
    assert len(before) == 16
    assert int(before, 16) >= 0
    tokenizer("i love this film", truncation=True, max_length=4, padding="max_length")
    tokenizer.model_max_length = 7
    assert digest(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert digest(load_tokenizer(str(tmp_path))) == before
    assert digest(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_digest_tells_tokenizers_apart():
    tokenizer = train_wordpiece(CORPUS, 150)
    vocabulary = tokenizer.get_vocab()
    swapped = {**vocabulary, "film": vocabulary["happy"], "happy": vocabulary["film"]}
    others = [
        BertTokenizer(vocab=vocabulary),
        BertTokenizer(vocab=swapped),
        BertTokenizer(vocab=vocabulary, do_lower_case=False),
        BertTokenizer(vocab={**vocabulary, "more": len(vocabulary)}),
    ]
    digests = [digest(other) for other in others]
    assert digests[0] == digest(tokenizer)
    assert len(set(digests)) == len(others)


def test_digest_sees_added_tokens():
    tokenizer = train_wordpiece(CORPUS, 150)
    before = digest(tokenizer)
    tokenizer.add_tokens(["[USER]"])
    assert digest(tokenizer) != before


# Loading


def test_vocabulary_argument_is_not_ignored(tmp_path):
    """`BertTokenizer(vocab_file=...)` is: every word becomes [UNK]."""
    trained = train_wordpiece(CORPUS, 150)
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(pieces(trained)) + "\n")
    assert len(BertTokenizer(vocab_file=str(file))) == 5
    assert len(BertTokenizer(vocab=trained.get_vocab())) == len(trained)


def test_byte_level_tokenizer_of_roberta(tmp_path):
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(CORPUS, vocab_size=300, show_progress=False)
    trainer.save_model(str(tmp_path))
    trained = RobertaTokenizer.from_pretrained(tmp_path)
    trained.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"))
    assert loaded(TEXTS)["input_ids"] == trained(TEXTS)["input_ids"]
    assert digest(loaded) == digest(trained)


def test_tokenizer_without_fast_version_is_refused(tmp_path):
    CanineTokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no fast version, which kd needs"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "{}", "", '{"version": "1.0", "model": {"type": "Odd"}}'])
def test_damaged_tokenizer_is_refused(tmp_path, text):
    train_wordpiece(CORPUS, 150).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="has no tokenizer that loads: ") as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["nowhere/at/all", "google/no-such-model"])
def test_missing_tokenizer_is_refused(path):
    with pytest.raises(ModelError, match=f"{path} has no tokenizer that loads: ") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_empty_folder_has_no_tokenizer(tmp_path):
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("It broke"), "It broke"),
        (ValueError("It broke.\n\nHere is how. And why."), "It broke"),
        (KeyError(), "KeyError"),
        (ValueError(" two\n   lines!"), "two lines"),
        (OSError("no file model.bin, found in /a/b.c"), "no file model.bin, found in /a/b.c"),
    ],
)
def test_reason_is_one_sentence(error, text):
    assert reason(error) == text
