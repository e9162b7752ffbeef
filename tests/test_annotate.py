"""The annotate command, from a recipe to a file, against a server that speaks real HTTP."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pyarrow import parquet

from kd.answers import prune_answers
from kd.cli import main
from kd.console import progress_bar
from kd.rationales.api import APIAnnotator
from kd.rationales.store import Store
from kd.runs import annotations_folder
from tests.rationales.server import AnnotationServer

ROOT = Path(__file__).parents[1]
LABELS = ("negative", "positive")


def sentences(count):
    """Texts of which the server knows the class, and how it is labelled: one in ten wrongly."""
    rows = []
    for number in range(count):
        good = number % 2 == 0
        word = ("great", "brilliant", "warm") if good else ("awful", "dull", "cold")
        text = f"film {number} is {word[number % 3]}, and this is all there is to say"
        rows.append((text, LABELS[good ^ (number % 10 == 0)]))
    return rows


class World:
    """A folder with rows and a recipe, from which `annotate` is run."""

    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "runs"
        self.write(sentences(40), "train.csv")
        self.write([("held out, and great", "positive"), ("held out, awful", "negative")])

    def write(self, rows, name="validation.csv"):
        lines = ["text,label", *(f'"{text}",{label or ""}' for text, label in rows)]
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def recipe(self, url, data=(), **options):
        path = self.folder / "films.yaml"
        source = {name: str(self.folder / f"{name}.csv") for name in ("train", "validation")}
        asked = {"model": "tiny", "provider": "custom", "base_url": url, "structured": "none"}
        recipe = {
            "annotator": {"class_path": "APIAnnotator", "init_args": {**asked, **options}},
            "data": {"source": source, **dict(data)},
            "root": str(self.root),
        }
        path.write_text(yaml.safe_dump(recipe))
        return path

    def annotate(self, url, *words, data=(), code=0, **options):
        """Run the command in this process; what it exports, if it does."""
        arguments = ["annotate", "--config", str(self.recipe(url, data, **options)), *words]
        if code:
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert stop.value.code == code
        else:
            main(arguments)
        return self.exported

    @property
    def versions(self):
        paths = self.root.glob("films/version_*")
        return sorted(paths, key=lambda path: int(path.name.removeprefix("version_")))

    @property
    def newest(self):
        return self.versions[-1]

    @property
    def exported(self):
        path = self.versions and self.newest / "annotations.parquet"
        return parquet.read_table(path).to_pylist() if path and path.exists() else []

    @property
    def manifest(self):
        return json.loads((self.newest / "manifest.json").read_text())

    @property
    def report(self):
        return json.loads((self.newest / "report.json").read_text())

    @property
    def stored(self):
        (path,) = annotations_folder(str(self.root)).glob("*.jsonl")
        return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_each_training_row_gets_its_explanation_in_the_order_of_the_rows(world, capsys):
    with AnnotationServer(latency=(0.0, 0.03)) as server:
        rows = world.annotate(server.url)
        assert Counter(server.texts) == Counter(text for text, _ in sentences(40))
    assert [(row["text"], row["label"]) for row in rows] == sentences(40)
    assert {row["status"] for row in rows} == {"ok"}
    first = rows[0]
    assert first["rationale"] == "The writer speaks of great."
    assert (first["label"], first["teacher_label"]) == ("negative", "positive")
    assert (first["teacher_confidence"], first["confidence_source"]) == (0.9, "verbalised")
    assert (first["rationale_source"], first["evidence"]) == ("free", ["great"])
    assert world.manifest["status"] == "finished"
    assert world.manifest["command"] == "annotate"
    assert world.manifest["keys"]["annotations"] == first["recipe"]
    told = capsys.readouterr().out
    assert "plan = 40 rows, 40 distinct texts, 0 answers are kept, 40 to ask for" in told
    assert "agrees with 90.0% of 40 labels" in told


def test_the_report_counts_what_the_rows_say(world):
    texts = [text for text, _ in sentences(40)]
    with AnnotationServer({texts[1]: "refusal", texts[2]: "unknown_label"}) as server:
        rows = world.annotate(server.url, "--min_ok=0.9")
    report = world.report
    assert report["statuses"] == {"ok": 38, "refused": 1, "invalid_label": 1}
    assert report["examples"]["refused"]["text"] == texts[1]
    assert "mixed" in report["examples"]["invalid_label"]["reason"]
    assert report["confusion"] == {
        "negative": {"negative": 19, "positive": 4},
        "positive": {"negative": 0, "positive": 15},
    }
    assert report["agreement"] == pytest.approx(34 / 38)
    assert report["leaks"]["probed"] == 38
    assert report["run"]["answers"] == 40
    assert report["run"]["completion_tokens"] >= 40 * 40
    assert rows[1]["status"] == "refused"
    for row in rows[1:3]:
        assert row["rationale"] is row["teacher_label"] is row["teacher_confidence"] is None


def test_the_exported_bytes_are_equal_for_any_latency_and_concurrency(tmp_path):
    texts = [text for text, _ in sentences(40)]
    exported, orders = [], []
    for number, (latency, concurrency) in enumerate([((0.0, 0.0), 16), ((0.001, 0.04), 5)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder)
        with AnnotationServer({texts[7]: "unknown_label"}, latency=latency, seed=number) as server:
            world.annotate(server.url, concurrency=concurrency)
            assert server.most_in_flight <= concurrency
        exported.append((world.newest / "annotations.parquet").read_bytes())
        orders.append([row["text"] for row in world.stored])
    assert orders[0] != orders[1]
    assert exported[0] == exported[1]


def test_what_is_answered_is_never_asked_again(world):
    texts = [text for text, _ in sentences(40)]
    with AnnotationServer({texts[5]: ["unknown_label"]}) as server:
        world.annotate(server.url)
        world.annotate(server.url)
        assert Counter(server.texts) == Counter([*texts, texts[5]])
        third = server.requests
        world.annotate(server.url)
        assert server.requests == third
    exports = [version / "annotations.parquet" for version in world.versions]
    assert exports[1].read_bytes() == exports[2].read_bytes() != exports[0].read_bytes()


def test_emptying_the_caches_leaves_the_answers(world):
    with AnnotationServer() as server:
        world.annotate(server.url)
        prune_answers(str(world.root), everything=True)
        world.annotate(server.url)
    assert server.requests == 40


def test_the_refused_are_asked_again_only_if_that_is_wanted(world):
    texts = [text for text, _ in sentences(40)]
    with AnnotationServer({texts[5]: ["refusal"]}) as server:
        world.annotate(server.url)
        assert world.annotate(server.url)[5]["status"] == "refused"
        assert server.requests == 40
        assert world.annotate(server.url, "--retry_refused")[5]["status"] == "ok"
        assert server.requests == 41


@pytest.mark.slow
def test_after_a_kill_exactly_what_is_missing_is_asked_for(world):
    world.write(sentences(600), "train.csv")
    texts = [text for text, _ in sentences(600)]
    with AnnotationServer(latency=(0.02, 0.06)) as server:
        recipe = world.recipe(server.url, concurrency=8)
        command = [sys.executable, "-m", "kd", "annotate", "--config", str(recipe)]
        killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while server.requests < 250:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        first = server.texts.copy()
        kept = [row["text"] for row in world.stored]
        assert len(first) - 8 <= len(kept) == len(set(kept)) < 600
        rows = world.annotate(server.url, concurrency=8)
        second = server.texts[len(first) :]
        assert Counter(second) == Counter(set(texts) - set(kept))
        assert sum(count > 1 for count in Counter(server.texts).values()) <= 8
        world.annotate(server.url, concurrency=8)
        assert len(server.texts) == len(first) + len(second)
    assert [row["text"] for row in rows] == texts
    assert {row["status"] for row in rows} == {"ok"}


def test_a_storm_of_rejections_loses_no_row(world):
    with AnnotationServer({"*": ["429", "429"]}) as server:
        rows = world.annotate(server.url)
        assert server.requests == 3 * 40
    assert {row["status"] for row in rows} == {"ok"}


def test_a_dry_run_makes_no_connection_and_writes_nothing(world, capsys):
    prices = {"input_price": 2.0, "output_price": 10.0, "tokens_per_minute": 1000}
    with AnnotationServer() as server:
        world.annotate("http://127.0.0.1:9/v1", "--dry_run", **prices)  # where nobody is
        assert not world.root.exists()
        first = capsys.readouterr().out
        world.annotate(server.url, "--limit=10")
        kept = annotations_folder(str(world.root))
        before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
        capsys.readouterr()
        world.annotate(server.url, "--dry_run=true", **prices)
        assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == before
        assert (server.requests, len(world.versions)) == (10, 1)
    assert "plan = 40 rows, 40 distinct texts, 0 answers are kept, 40 to ask for" in first
    assert "estimate = " in first
    assert "characters / 4" in first
    words = first.partition("estimate = ")[2].replace(",", "").split()
    read, written = int(words[0]), int(words[5])
    assert f"${(2 * read + 10 * written) / 1e6:.4f}" in first
    assert f"at least {math.ceil((read + written) / 1000)} min" in first
    assert "10 answers are kept, 30 to ask for" in capsys.readouterr().out


@pytest.mark.parametrize("is_right", [True, False])
def test_the_key_is_in_no_file_and_in_no_output(world, monkeypatch, capsys, is_right):
    secret = "gsk_a1B2c3D4e5F6g7H8i9J0"
    monkeypatch.setenv("MY_OWN_KEY", secret)
    faults = {sentences(2)[1][0]: "echo_key"} if is_right else {"*": "401_echo"}
    with AnnotationServer(faults, key=secret) as server:
        world.annotate(server.url, code=0 if is_right else 2, api_key_env="MY_OWN_KEY")
        assert server.requests == (40 if is_right else 1)
    told = capsys.readouterr()
    assert ("MY_OWN_KEY" in told.err) is not is_right
    files = [path for path in world.folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for content in (told.out.encode(), told.err.encode(), *(path.read_bytes() for path in files)):
        assert secret.encode() not in content
    assert len(world.versions) == is_right, "a mistake leaves no run behind"


def test_a_key_that_is_not_set_is_named(world, monkeypatch, capsys):
    monkeypatch.delenv("MY_OWN_KEY", raising=False)
    world.annotate("http://127.0.0.1:9/v1", code=2, api_key_env="MY_OWN_KEY")
    assert "environment variable MY_OWN_KEY is not set" in capsys.readouterr().err
    assert not world.versions


@pytest.mark.fault(39)
def test_a_cost_that_is_reached_pauses_and_the_same_command_continues(world, capsys):
    prices = {"input_price": 0.0, "output_price": 1000.0, "concurrency": 4}  # 0.04 dollars each
    with AnnotationServer() as server:
        world.annotate(server.url, "--max_cost=0.62", code=75, **prices)
        assert 16 <= server.requests <= 16 + 3
        assert len(world.stored) == server.requests, "what is paid is kept"
        assert world.manifest["status"] == "interrupted"
        told = capsys.readouterr()
        assert "kd: paused: max_cost of $0.62 is spent" in told.err
        assert "nothing is lost" in told.out
        world.annotate(server.url, "--max_cost=0.62", code=75, **prices)
        rows = world.annotate(server.url, "--max_cost=5", **prices)
        assert server.requests == 40
    assert {row["status"] for row in rows} == {"ok"}
    assert world.manifest["status"] == "finished"


def test_a_provider_that_wants_a_long_wait_pauses_the_run(world, capsys):
    texts = [text for text, _ in sentences(40)]
    with AnnotationServer({texts[20]: ["429_wait_300"]}) as server:
        world.annotate(server.url, code=75, max_wait_seconds=10, concurrency=2)
        assert world.manifest["status"] == "interrupted"
        assert 19 <= len(world.stored) <= 21
        world.annotate(server.url)
        assert world.manifest["status"] == "finished"
    assert "the same command continues" in capsys.readouterr().err


def test_too_few_explanations_are_no_finished_run(world, capsys):
    texts = [text for text, _ in sentences(40)]
    with AnnotationServer({text: ["unknown_label"] for text in texts[:4]}) as server:
        rows = world.annotate(server.url, code=2)
        assert [row["status"] for row in rows[3:5]] == ["invalid_label", "ok"]
        assert world.manifest["status"] == "failed"
        assert "annotations.parquet" in world.manifest["checksums"]
        assert "Only 90.0% of 40 rows are explained" in capsys.readouterr().err
        world.annotate(server.url)
    assert [json.loads((path / "manifest.json").read_text())["status"] for path in world.versions] \
        == ["failed", "finished"]  # fmt: skip


@pytest.fixture
def _interruptible():
    """Where tests run in the background, Ctrl-C may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_keeps_the_answers(world, capsys):
    with AnnotationServer(latency=(0.01, 0.02)) as server:

        def explain(text):
            if server.requests == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return server.explain(text)

        server.reply = explain
        world.annotate(server.url, code=130, concurrency=4)
        kept = len(world.stored)
        assert 8 <= kept < 20
        assert world.manifest["status"] == "interrupted"
        told = capsys.readouterr()
        assert f"kept = {kept} answers" in told.out
        assert "Traceback" not in told.err
        server.reply, asked = server.explain, server.requests
        world.annotate(server.url)
        assert server.requests - asked == 40 - kept


def test_a_second_writer_is_turned_away_and_leaves_no_run(world, capsys):
    with AnnotationServer() as server:
        world.annotate(server.url)
        facts = APIAnnotator("tiny", "custom", server.url, structured="none").facts(LABELS)
        with Store(annotations_folder(str(world.root)), facts):
            world.annotate(server.url, code=2)
    assert "another process" in capsys.readouterr().err
    assert len(world.versions) == 1


def test_equal_texts_are_asked_about_once(world):
    rows = sentences(20)
    world.write(rows + rows[::-1], "train.csv")
    with AnnotationServer() as server:
        exported = world.annotate(server.url)
        assert Counter(server.texts) == Counter(text for text, _ in rows)
    assert [row["text"] for row in exported] == [text for text, _ in rows + rows[::-1]]
    assert exported[:20] == exported[:19:-1]


def test_texts_that_are_held_out_are_never_asked_about(world):
    with AnnotationServer() as server:
        exported = world.annotate(
            server.url, data={"source": {"train": f"{world.folder}/train.csv"}}
        )
        asked = set(server.texts)
    assert len(exported) == 36, "a tenth of the rows is to validate on"
    assert asked == {row["text"] for row in exported}


def test_rows_without_a_label_are_asked_about_too(world):
    rows = sentences(40)
    world.write(rows[:30] + [(text, None) for text, _ in rows[30:]], "train.csv")
    with AnnotationServer() as server:
        exported = world.annotate(server.url, data={"on_empty_label": "unlabelled"})
    assert [row["label"] for row in exported[30:]] == [None] * 10
    assert all(row["teacher_label"] and row["status"] == "ok" for row in exported)
    assert sum(sum(row.values()) for row in world.report["confusion"].values()) == 30


def test_an_annotator_that_is_told_the_label_leaves_out_rows_without_one(world, capsys):
    rows = sentences(40)
    world.write(rows[:30] + [(text, None) for text, _ in rows[30:]], "train.csv")
    prompt = {"source": "rationalised"}
    with AnnotationServer() as server:
        exported = world.annotate(server.url, data={"on_empty_label": "unlabelled"}, prompt=prompt)
        assert server.requests == 30
        assert all(label in body["messages"][-1]["content"]
                   for body, text in zip(server.bodies, server.texts, strict=True)
                   for label in [dict(rows)[text]])  # fmt: skip
    assert "10 rows left out: no label to explain" in capsys.readouterr().out
    assert {row["rationale_source"] for row in exported[:30]} == {"rationalised"}
    assert {row["status"] for row in exported[30:]} == {None}
    assert world.report["rows"] == 30


def test_several_answers_to_a_text_are_put_to_the_vote(world):
    with AnnotationServer() as server:

        def waver(text):
            wrong = server.texts.count(text) == 2  # the second of three answers
            said = json.loads(server.explain(text))
            said["label"] = LABELS[(said["label"] == "positive") ^ wrong]
            return json.dumps(said)

        server.reply = waver
        exported = world.annotate(server.url, samples=3, temperature=0.7, concurrency=1)
        assert server.requests == 120
    assert {row["confidence_source"] for row in exported} == {"vote"}
    assert {row["teacher_confidence"] for row in exported} == {2 / 3}
    assert world.report["agreement"] == 0.9


def test_a_run_can_be_repeated_from_its_own_config(world, monkeypatch):
    with AnnotationServer() as server:
        world.annotate(server.url, "--limit=8")
        monkeypatch.chdir(world.folder)
        main(["annotate", f"--config={world.newest / 'config.yaml'}"])
        assert server.requests == 8
    assert len(world.versions) == 2, "the name is in it"
    assert len(world.exported) == 8


def test_where_no_label_is_to_be_told_nobody_is_asked(world, capsys):
    data, prompt = {"labelled_rows": 0}, {"source": "rationalised"}
    world.annotate("http://127.0.0.1:9/v1", code=2, data=data, prompt=prompt)
    assert "No training row has a label" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.pair_column=label"], "data.pair_column"),
        (["--data.multi_label=true"], "data.multi_label"),
        (["--limit=0"], "limit is 0"),
        (["--min_ok=95"], "min_ok is 95"),
        (["--max_cost=0"], "max_cost is 0"),
        (["--max_cost=1"], "max_cost needs prices"),
        (["--name=../x"], "run.name"),
        (["--annotator.modle=x"], "did you mean model"),
        (["--annotator.class_path=APIAnotator"], "did you mean APIAnnotator"),
        (["--annotator.samples=0"], "samples is 0"),
        (["--annotator.prompt.source=guessed"], "prompt"),
        (["--data.source.train=nothing.csv"], "nothing.csv"),
        (["--retry_refusd=true"], "did you mean retry_refused"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing_behind(world, capsys, words, expected):
    world.annotate("http://127.0.0.1:9/v1", *words, code=2)
    told = capsys.readouterr().err
    assert told.startswith("kd: error: ")
    assert expected in told
    assert "Traceback" not in told
    assert not world.root.exists()


def test_the_help_tells_of_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["annotate", "--help"])
    assert stop.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in ("--annotator", "--data.source", "--limit", "--dry_run", "--max_cost", "--min_ok",
                  "APIAnnotator", "Let an LLM explain"):  # fmt: skip
        assert words in told


def test_where_there_is_no_terminal_a_line_now_and_then_tells_how_it_goes(capsys):
    with progress_bar("asking", 9, detail=lambda: "half ok", seconds_per_line=0.02) as advance:
        advance(4)
        time.sleep(0.1)
    told = capsys.readouterr().out.splitlines()
    assert 2 <= len(told) <= 6
    assert set(told) == {"asking = 4/9, half ok"}
