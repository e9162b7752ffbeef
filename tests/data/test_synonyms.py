import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from kd.data.augment import vary_texts
from kd.data.sample import generate
from kd.data.sentence import cut
from kd.data.synonyms import Synonym
from kd.data.thesaurus import SYNONYMS
from kd.errors import ConfigError

ROOT = Path(__file__).parents[2]
# a WordNet of our own: part of speech, words of one meaning, how often each was seen
MEANINGS = [
    ("noun", "film movie flick", (9, 9, 0)),
    ("noun", "film layer", (3, 3)),
    ("noun", "shop store", (5, 5)),
    ("noun", "actor thespian", (5, 5)),
    ("verb", "buy purchase", (9, 9)),
    ("verb", "watch observe", (9, 9)),
    ("verb", "stop cease", (9, 9)),
    ("verb", "hurry rush", (9, 9)),
    ("adj", "lovely charming", (9, 9)),
    ("adv", "quickly rapidly", (9, 9)),
    ("adj", "fine very", (9, 9)),
]
IRREGULAR = {"noun": {}, "verb": {"bought": "buy", "stopped": "stop", "hurried": "hurry"}}
TAGS = {
    "DT": "a an the", "PRP": "i we it", "NN": "film shop actor layer", "NNS": "films actors",
    "NNP": "Film", "VBP": "watch buy", "VBD": "bought stopped hurried watched",
    "VBZ": "watches hurries", "VBG": "watching buying", "JJ": "lovely Lovely fine", "RB": "quickly",
}  # fmt: skip


def write_wordnet(folder):
    """Write WordNet's files (wndb(5WN)) and the tagger's for the few words above."""
    net, tagger = folder / "corpora/wordnet", folder / "taggers/averaged_perceptron_tagger_eng"
    for path in (net, tagger):
        path.mkdir(parents=True)
    counts = []
    for number, part in enumerate(("noun", "verb", "adj", "adv"), start=1):
        data, index = "", {}
        for kind, words, seen in MEANINGS:
            if kind != part:
                continue
            entries = " ".join(f"{word} 0" for word in words.split())
            for word, count in zip(words.split(), seen, strict=True):
                index.setdefault(word, []).append(f"{len(data):08d}")
                sense = len(index[word])
                counts += (
                    [f"{word}%{number}:00:00:: {sense} {count}"] if count and sense == 1 else []
                )
            data += f"{len(data):08d} 00 {part[0] if part != 'adv' else 'r'} "
            data += f"{len(words.split()):02x} {entries} 000 | a meaning\n"
        letter = "r" if part == "adv" else part[0]
        lines = [
            f"{w} {letter} {len(at)} 0 {len(at)} 0 {' '.join(at)}"
            for w, at in sorted(index.items())
        ]
        (net / f"data.{part}").write_text(data)
        (net / f"index.{part}").write_text("".join(f"{line}  \n" for line in lines))
        forms = IRREGULAR.get(part, {}).items()
        (net / f"{part}.exc").write_text(
            "".join(f"{form} {word}\n" for form, word in sorted(forms))
        )
    (net / "cntlist.rev").write_text("".join(f"{line}\n" for line in sorted(counts)))
    (net / "lexnames").write_text("00\tall\t1\n")
    (net / "index.sense").write_text("")
    known = {word: tag for tag, words in TAGS.items() for word in words.split()}
    name = "averaged_perceptron_tagger_eng"
    for part, content in (("weights", {}), ("tagdict", known), ("classes", sorted(TAGS))):
        (tagger / f"{name}.{part}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns every word that WordNet puts in place of a sentence's words."""
    folder = tmp_path_factory.mktemp("nltk_data")
    write_wordnet(folder)
    code = """if True:
        import json, sys
        from random import Random
        from kd.data.sentence import cut
        from kd.data.synonyms import Synonym
        answers = {}
        for text, senses in json.loads(sys.stdin.read()):
            augmenter = Synonym(share=1.0, senses=senses)
            augmenter.prepare()
            made = {augmenter.change(cut(text), Random(seed)).text for seed in range(30)}
            answers[f"{text} {senses}"] = sorted(made)
        print(json.dumps(answers))
        """
    asked = [
        ("I watch a film", 2), ("I watch a film", 1), ("we bought the films", 1),
        ("it stopped", 1), ("it hurries", 1), ("we hurried", 1), ("we watched it", 1),
        ("I watch an actor", 2), ("watching buying", 1), ("the shop", 1), ("Film", 1),
        ("the FILM quickly", 1), ("Lovely actors", 1), ("it watches a shop", 1), ("a fine film", 1),
        ("quickly, quickly", 1), ("the actors", 1),
    ]  # fmt: skip
    env = {"PATH": os.environ["PATH"], "NLTK_DATA": str(folder), "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asked), env=env, text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(answer.stdout)


def test_words_of_the_first_meanings_are_synonyms(found):
    assert found["I watch a film 1"] == ["I observe a movie"]
    assert found["I watch a film 2"] == ["I observe a layer", "I observe a movie"]


def test_words_never_seen_in_a_meaning_are_left_out(found):
    assert not any("flick" in text for texts in found.values() for text in texts)


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("we bought the films", "we purchased the movies"),
        ("it stopped", "it ceased"),
        ("it hurries", "it rushes"),
        ("we hurried", "we rushed"),
        ("we watched it", "we observed it"),
        ("watching buying", "observing purchasing"),
        ("it watches a shop", "it observes a store"),
        ("the actors", "the thespians"),
    ],
)
def test_synonyms_are_inflected_alike(found, text, variant):
    assert found[f"{text} 1"] == [variant]


def test_synonyms_keep_the_case(found):
    assert found["Lovely actors 1"] == ["Charming thespians"]


def test_names_stay(found):
    assert found["Film 1"] == ["Film"]


def test_synonyms_go_with_the_article(found):
    assert found["I watch an actor 2"] == ["I observe an actor"]


def test_a_synonym_is_never_an_intensifier(found):
    assert found["a fine film 1"] == ["a fine movie"]


def test_without_wordnet_and_network_one_sentence_says_what_to_do(tmp_path):
    words = ["fit", "--config=configs/quickstart.yaml", f"--run.root={tmp_path}"]
    given = "{class_path: Synonym, init_args: {thesaurus: wordnet}}"
    words.append(f"--data.augment.augmenters=[{given}]")
    code = f"from kd.cli import main; main({words})"
    nowhere = {"https_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env = {"PATH": os.environ["PATH"], "NLTK_DATA": str(tmp_path), **nowhere}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=env, text=True, capture_output=True, check=False, cwd=ROOT
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    for said in ("wordnet", "averaged_perceptron_tagger_eng", "NLTK_DATA", "thesaurus: builtin"):
        assert said in answer.stderr
    assert "training it by" not in answer.stdout, "no model was trained before"


def test_wrong_senses_are_one_sentence():
    with pytest.raises(ConfigError, match=r"Synonym\.senses"):
        Synonym(senses=0)


def test_built_in_synonyms_are_those_of_the_thesaurus():
    word = next(iter(SYNONYMS))
    text = f"river {word} stone"
    made = {
        Synonym(1.0, "builtin").change(cut(text), Random(seed)).text.split()[1]
        for seed in range(99)
    }
    assert made == set(SYNONYMS[word])


def test_built_in_synonyms_change_most_texts_of_the_corpus():
    texts = [text for text, _ in generate("train")]
    varied = vary_texts(texts, [1] * len(texts), [Synonym(thesaurus="builtin")])
    assert sum(text != variant for text, (variant,) in zip(texts, varied, strict=True)) > 0.5 * len(
        texts
    )


def test_settings_tell_thesauri_apart():
    described = [
        augmenter.describe()
        for augmenter in (Synonym(), Synonym(senses=3), Synonym(thesaurus="builtin"))
    ]
    assert len({json.dumps(one) for one in described}) == 3
