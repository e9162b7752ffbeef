from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd.cli import main
from kd.rationales.annotators import Question, Reply
from kd.rationales.api import APIAnnotator
from tests.rationales.conftest import LABELS, PROMPT, REVIEWS

for _package in ("fastapi", "openai", "uvicorn"):  # transformers[serving], kd[annotate]
    pytest.importorskip(_package)


@pytest.fixture(scope="module")
def served(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `transformers serve` with the tiny chat model, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(chat_model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        deadline = time.monotonic() + 120
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_served_model_explains_every_review_over_http(served, chat_model):
    annotator = APIAnnotator(
        model=str(chat_model), provider="transformers", base_url=served, prompt=PROMPT
    )
    found: dict[str, Reply] = {}
    annotator.answer(
        (Question(text) for text, _ in REVIEWS),
        LABELS,
        lambda question, reply: found.__setitem__(question.text, reply),
    )
    assert len(found) == len(REVIEWS)
    for text, label in REVIEWS:
        reply = found[text]
        assert (reply.status, reply.label, reply.reason) == ("ok", label, "")
        assert reply.evidence[0] in text
        assert (reply.confidence, reply.confidence_source) == (0.9, "verbalised")
        assert reply.prompt_tokens > 0
        assert reply.completion_tokens > 20


def test_the_whole_way_from_texts_over_http_to_a_student(served, chat_model, tmp_path, capsys):
    """Texts, a real language model behind HTTP, its JSON, the store, a student, its answer."""
    rows = tmp_path / "reviews.csv"
    rows.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in REVIEWS))
    source = f"--data.source={{train: {rows}, validation: {rows}}}"
    asked = {"model": str(chat_model), "provider": "transformers", "base_url": served}
    asked["prompt"] = {"instructions": PROMPT.instructions, "question": PROMPT.question}
    annotator = json.dumps({"class_path": "APIAnnotator", "init_args": asked})
    words = [f"--annotator={annotator}", source, f"--root={tmp_path}", "--name=said"]
    main(["annotate", *words])
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 64}
    student = {"class_path": "EncoderClassifier", "init_args": {"config": config, "dropout": 0.0}}
    terms = {"privileged": {"class_path": "PrivilegedKD"}, "labels": {"class_path": "HardLabel"}}
    held_out = tmp_path / "held_out.csv"
    held_out.write_text("text,label\na warm and moving story,positive\na dull tale,negative\n")
    main(
        [
            "fit",
            f"--model.student={json.dumps(student)}",
            f"--model.objectives={json.dumps(terms)}",
            "--model.learning_rate=1e-2",
            f"--data.source={{train: {rows}, validation: {held_out}}}",
            f"--data.rationales={{path: {tmp_path / 'said'}}}",
            "--data.batch_size=8",
            "--trainer.max_epochs=30",
            "--trainer.check_val_every_n_epoch=10",
            "--trainer.accelerator=cpu",
            f"--run.root={tmp_path}",
            "--run.name=student",
        ]
    )
    told = capsys.readouterr().out
    assert "annotated = 16 of 16 rows" in told
    report = json.loads((tmp_path / "student/version_0/rationales.json").read_text())
    assert report["audit"]["agreement"] == 1.0
    assert "leak/reader" in (tmp_path / "student/version_0/metrics.csv").read_text()
    main(["classify", f"--model={tmp_path / 'student'}", "i loved every minute of it"])
    assert capsys.readouterr().out.startswith("positive\t")
