"""What Weights & Biases is told, read back by its own reader, and that it stops no training."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.util import get_core_path

from kd.cli import main
from kd.compare import _resolved
from kd.errors import RunError
from kd.fits import Fit, Training
from kd.predictions import VALIDATION, read_predictions
from kd.runs import claim, read_manifest
from kd.tracking import RunLogger, begin, finish
from tests.conftest import FAMILIES, LABELS, TEXTS

ROOT = Path(__file__).parents[1]
KEY = "c0ffee" * 6 + "c0ff"
HASTE = {"WANDB_HTTP_TIMEOUT": "1", "WANDB_INIT_TIMEOUT": "2", "WANDB_FINISH_TIMEOUT": "2"}


class _Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_POST(self) -> None:
        body, answer = self._body(), {}
        self.close_connection = self.server.is_gone
        if self.server.is_gone:
            return
        self.server.bodies.append(body)
        if self.path == "/graphql":
            answer = {"data": self.server.answer(json.loads(body), self.headers["Host"])}
        elif self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.server.history += map(json.loads, lines.get("content", ()))
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_POST


class WandbServer(ThreadingHTTPServer):
    """As much of W&B as it takes to start a run and to send one."""

    daemon_threads = True

    def __init__(self, dies_after: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.dies_after, self.is_gone = dies_after, False
        self.bodies: list[bytes] = []
        self.history: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has hung up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.is_gone = True
        self.shutdown()
        self.server_close()

    def answer(self, asked: dict[str, Any], host: str) -> dict[str, Any] | None:
        given = asked.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found[1] if found else ""
        project = {"id": "p", "name": "p", "entity": {"id": "me", "name": "me"}}
        if name == self.dies_after:
            Thread(target=self.close).start()
        if name == "Viewer":
            me = {"id": "me", "entity": "me", "username": "me", "flags": "{}"}
            return {"viewer": {**me, "teams": {"edges": []}}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": None}}
        if name == "UpsertBucket":
            self.runs.append(given)
            run = {"id": "r", "name": given["name"], "displayName": "r", "config": given["config"]}
            bucket = {**run, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": one, "uploadUrl": f"http://{host}/{one}"} for one in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            self.artifacts.append(given["input"])
            sequence = {"latestArtifact": None}
            made = {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": made}}
        return None


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Iterator[Path]:
    """A folder with rows and a teacher; W&B keeps its own files there too."""
    folder = tmp_path_factory.mktemp("world")
    facts = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    sizes = {**FAMILIES["bert"], "vocab_size": len(tokenizer), "initializer_range": 0.5}
    config = AutoConfig.for_model("bert", **sizes, **facts)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    rows = [
        f'"{text} {turn}",{LABELS[place < 4]}'
        for turn in range(5)
        for place, text in enumerate(TEXTS)
    ]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_DATA_DIR", str(folder))
        patch.setenv("NETRC", str(folder / "none"))
        yield folder


def words_of(world: Path, root: Path) -> list[str]:
    """The command line of a tiny fit with W&B."""
    teacher = {"class_path": "ModelTeacher", "init_args": {"path": str(world / "teacher")}}
    given = ["--trainer.logger=WandbLogger", "--run.name=tiny", f"--run.root={root}"]
    given += [f"--model.student.path={world / 'teacher'}", "--model.student.keep_layers=[0]"]
    given += [f"--model.teacher={json.dumps(teacher)}", "--model.objectives.logits=LogitKD"]
    given += ["--model.objectives.labels=HardLabel", f"--data.source.train={world / 'rows.csv'}"]
    given += ["--data.batch_size=8", "--data.max_length=24", "--data.validation_fraction=0.5"]
    given += ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    return ["fit", *given, "--trainer.max_epochs=1"]


def fit(world: Path, root: Path, *words: str) -> Path:
    """Run a fit with W&B and return its version folder."""
    main([*words_of(world, root), *words])
    return max((root / "tiny").iterdir(), key=lambda path: int(path.name.split("_")[1]))


def files_of(run: Path) -> list[Path]:
    """The files in which W&B has kept a run, in the order of their making."""
    return sorted((run / "wandb").glob("*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)


def records(file: Path, kind: str) -> list[dict[str, Any]]:
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability"]
    command += ["--run-file", str(file), str(file.parents[1])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    every = [json.loads(line) for line in said.splitlines()]
    return [record[kind] for record in every if record["type"] == kind]


def history(file: Path) -> list[dict[str, Any]]:
    return [record["item"] for record in records(file, "history")]


def configured(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records(file, "config"):
        found |= record["update"]
    return found


def table(file: Path, name: str) -> list[dict[str, Any]]:
    told = next((file.parent / "files" / "media" / "table").glob(f"{name}_[0-9]*.table.json"))
    said = json.loads(told.read_text())
    return [dict(zip(said["columns"], row, strict=True)) for row in said["data"]]


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit, offline."""
    return fit(world, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    (found,) = files_of(run)
    return found


def test_the_recipe_is_the_config_and_the_id_is_in_the_manifest(run: Path, file: Path) -> None:
    told = configured(file)
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    assert {key: told[key] for key in recipe} == recipe
    assert told["directory"] == str(run)
    assert records(file, "run")[0]["run_id"] == read_manifest(run)["wandb_id"]


def test_runs_of_a_name_are_a_group(file: Path) -> None:
    assert records(file, "run")[0]["run_group"] == "tiny"


def test_every_term_is_a_metric_of_its_own(run: Path, file: Path) -> None:
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    for name in ("train/loss", "train/labels", "train/logits", "val/accuracy"):
        ours = [float(row[name]) for row in rows if row[name]]
        theirs = [item[name] for item in history(file) if name in item]
        assert theirs == pytest.approx(ours)
        assert ours


def test_tables_show_the_surest_errors_and_where_the_two_differ(run: Path, file: Path) -> None:
    found = read_predictions(run / VALIDATION)
    assert found.teacher is not None
    labels = found.labels
    rows = zip(
        found.texts, found.truth, found.student.argmax(1), found.teacher.argmax(1), strict=True
    )
    said = [(text, *(labels[place] for place in places)) for text, *places in rows]
    errors, flips = table(file, "worst_errors"), table(file, "flips")
    columns = ("text", "label", "student", "teacher")
    assert {tuple(row[key] for key in columns) for row in errors} == {
        row for row in said if row[1] != row[2]
    }
    assert {tuple(row[key] for key in columns) for row in flips} == {
        row for row in said if row[2] != row[3]
    }
    for rows in (errors, flips):
        sure = [row["student_confidence"] for row in rows]
        assert sure
        assert sure == sorted(sure, reverse=True)
        assert all(0.5 <= row["teacher_confidence"] <= 1 for row in rows)


def test_matrices_count_what_is_taken_for_what(run: Path, file: Path) -> None:
    found = read_predictions(run / VALIDATION)
    for role, logits in (("student", found.student), ("teacher", found.teacher)):
        counts = Counter(zip(found.truth.tolist(), logits.argmax(1).tolist(), strict=True))
        cells = table(file, f"confusion_{role}_table")
        assert {(row["Actual"], row["Predicted"]): row["nPredictions"] for row in cells} == {
            (one, other): counts[found.labels.index(one), found.labels.index(other)]
            for one in found.labels
            for other in found.labels
        }
        assert f"_wandb.visualize.confusion_{role}" in configured(file)


def test_the_student_is_an_artifact_and_its_figures_are_the_summary(run: Path, file: Path) -> None:
    results = read_manifest(run)["results"]
    (model,) = [one for one in records(file, "artifact") if one["type"] == "model"]
    assert model["name"] == "tiny"
    assert set(model["aliases"]) == {"best", "latest", "version_0"}
    assert json.loads(model["metadata"]) == results
    sent = {one["local_path"]: one["path"] for one in model["manifest"]["contents"]}
    there = [path for path in (run / "student").rglob("*") if path.is_file()]
    assert sent == {str(path): path.relative_to(run / "student").as_posix() for path in there}
    summary: dict[str, Any] = {}
    for record in records(file, "summary"):
        summary |= record["update"]
    for role in ("student", "teacher"):
        for name, value in results[role].items():
            assert summary[f"{role}/{name}"] == value


def test_a_resumed_run_is_the_same_one_there_and_the_environment_names_its_group(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "seeds")
    first = fit(world, tmp_path, "--run.save_every=1", "--trainer.max_steps=2")
    second = fit(world, tmp_path, "--run.save_every=1", f"--run.resume={first}")
    told = [records(files_of(one)[0], "run")[0] for one in (first, second)]
    assert told[0]["run_id"] == told[1]["run_id"] == read_manifest(second)["wandb_id"]
    assert told[1]["resume"], "so that W&B appends when it is sent later"
    assert [one["run_group"] for one in told] == ["seeds", "seeds"]
    assert min(item["trainer/global_step"] for item in history(files_of(second)[0])) >= 2


def test_rows_of_several_classes_are_told_by_their_names(world: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    label = ("negative", "positive", "negative|positive")
    lines = [f'"{TEXTS[n % 8]}",{label[n % 3]}' for n in range(48)]
    rows.write_text("\n".join(["text,label", *lines]) + "\n")
    words = ["--data.multi_label=true", f"--data.source.train={rows}", "--model.teacher=null"]
    run = fit(world, tmp_path, *words, "--model.objectives.logits=null")
    (file,) = files_of(run)
    errors = table(file, "worst_errors")
    assert {row["label"] for row in errors} <= {one.replace("|", ", ") for one in label}
    assert set(errors[0]) == {"text", "label", "student", "student_confidence"}
    names = {key for item in history(file) for key in item}
    assert "report/confusion_student._type" in names
    assert not [name for name in names if name.startswith(("flips", "confusion_", "report/agree"))]


def test_secrets_of_a_recipe_and_of_the_command_line_are_masked(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kd", "fit", "--model.token=hunter1"])
    logger = RunLogger(save_dir=tmp_path)
    recipe = {"data": {"paths": ["see https://me:hunter2@host/x"], "api_key": "hunter3", "n": 3}}
    run = claim(tmp_path, "tiny", command="fit")
    run.write_text("config.yaml", yaml.safe_dump(recipe))
    begin([logger], run)
    finish()
    (file,) = files_of(tmp_path)
    told = configured(file)["data"]
    assert told == {"paths": ["see https://***@host/x"], "api_key": "***", "n": 3}
    assert records(file, "environment")[0]["args"] == ["fit", "--model.token=***"]
    assert sys.argv[-1] == "--model.token=hunter1", "for the other ranks"
    assert b"hunter" not in file.read_bytes()


def test_a_run_that_was_told_to_stop_is_preempted_there(world: Path, tmp_path: Path) -> None:
    logger = RunLogger(save_dir=tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    finish(143)
    (file,) = files_of(tmp_path)
    assert records(file, "preempting")
    assert records(file, "exit")[0]["exit_code"] == 143


@pytest.mark.fault(42)
def test_a_run_goes_on_when_the_process_of_wandb_is_killed(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(save_dir=tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    for pid in _children("wandb-core"):
        os.kill(pid, signal.SIGKILL)
    for step in (1, 2):
        time.sleep(0.2)  # until it is known that nobody listens
        logger.log_metrics({"train/loss": 1.0}, step=step)
    finish()
    first, second = files_of(tmp_path)
    assert [item["trainer/global_step"] for item in history(second)] == [1, 2]
    assert first.name == second.name, "so the same run"
    assert capsys.readouterr().out.count("note: W&B fails") == 1


@pytest.mark.fault(42)
def test_a_training_is_finished_where_wandb_can_keep_nothing(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(world / "rows.csv" / "no_folder"))
    run = fit(world, tmp_path)
    assert read_manifest(run)["status"] == "finished"
    told = capsys.readouterr().out
    assert told.count("note: W&B fails (Unable to write staging files") == 2, "then it is disabled"
    assert "train/logits" in {
        key for file in files_of(run) for item in history(file) for key in item
    }


def _children(name: str) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        told, _, rest = (folder / "stat").read_text().rpartition(")")
        if told.endswith(f"({name}") and rest.split()[1] == str(os.getpid()):
            yield int(folder.name)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """W&B online, with a key, in haste; whoever takes this says where it is."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name, seconds in HASTE.items():
        monkeypatch.setenv(name, seconds)
    return monkeypatch


def program(*words: str, folder: Path, server: WandbServer) -> tuple[int, str]:
    """Run a program of this Python, and return its exit code and all that it said."""
    told = {**os.environ, "WANDB_BASE_URL": server.url, "PYTHONPATH": str(ROOT)}
    places: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(
        [sys.executable, "-m", *words], env=told, cwd=folder, text=True, timeout=100, **places
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.fault(42)
@pytest.mark.usefixtures("online")
def test_a_training_is_finished_and_sent_later_when_the_network_goes(
    world: Path, tmp_path: Path
) -> None:
    server = WandbServer(dies_after="UpsertBucket")
    words = words_of(world, tmp_path / "runs")
    code, said = program("kd", *words, folder=tmp_path, server=server)
    assert code == 0, said
    assert server.is_gone
    assert not server.history
    run = tmp_path / "runs" / "tiny" / "version_0"
    manifest = read_manifest(run)
    assert manifest["status"] == "finished"
    assert manifest["wandb_id"] == server.runs[0]["name"]
    assert f"`wandb sync --include-online {run}/wandb/*run-*` sends it later" in said

    later, kept = WandbServer(), [str(file.parent) for file in files_of(run)]
    sync = ["wandb", "sync", "--include-online", *kept]
    code, told = program(*sync, folder=tmp_path, server=later)
    later.close()
    assert code == 0, told
    assert {one["name"] for one in later.runs} == {manifest["wandb_id"]}
    assert {"train/loss", "train/labels", "train/logits", "val/accuracy", "report/losses"} <= {
        key for line in later.history for key in line
    }
    models = [one for one in later.artifacts if one["artifactTypeName"] == "model"]
    assert models
    assert all({"alias": "best", "artifactCollectionName": "tiny"} in m["aliases"] for m in models)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".wandb"]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [body for body in (*server.bodies, *later.bodies) if KEY.encode() in body]
    assert KEY not in said + told


@pytest.mark.fault(42)
def test_a_training_goes_on_offline_where_no_network_is(
    world: Path,
    tmp_path: Path,
    online: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        online.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        started = time.monotonic()
        run = fit(world, tmp_path)
    assert time.monotonic() - started < 60
    assert capsys.readouterr().out.count("note: W&B") == 1
    file = next(file for file in files_of(run) if file.parent.name.startswith("offline"))
    assert records(file, "run")[0]["run_id"] == read_manifest(run)["wandb_id"]
    assert {"train/logits", "val/accuracy"} <= {key for item in history(file) for key in item}
    assert [one for one in records(file, "artifact") if one["type"] == "model"]


def test_the_parameters_of_the_sweep_are_keys_of_its_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(Path("configs/sweep.yaml").read_text())
    chosen = {
        key: one["values"][-1] if "values" in one else one["max"]
        for key, one in sweep["parameters"].items()
    }
    asked = {"args": {key: {"value": value} for key, value in chosen.items()}}
    args = create_sweep_command_args(asked)["args"]
    words = create_sweep_command(sweep["command"])
    place = words.index("${args}")
    words[place : place + 1] = args
    recipe = _resolved(words[words.index("fit") + 1 :])
    assert recipe["trainer"]["logger"]["class_path"].endswith("WandbLogger")
    for key, value in chosen.items():
        part: Any = recipe
        for name in key.split("."):
            part = part.get("init_args", part) if isinstance(part, dict) else part
            part = part[name]
        assert part == value, key
    assert sweep["metric"]["name"] == "val/accuracy"


def test_seeds_that_are_compared_are_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in the place of Python tells what it was started with."""
    told = tmp_path / "python"
    told.write_text('#!/bin/sh\necho "group = $WANDB_RUN_GROUP"\nexit 1\n')
    told.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(told))
    one = Fit("distilled", 1, [], {"model": {"teacher": None}, "run": {"monitor": "val/f1"}})
    (tmp_path / "logs").mkdir()
    training = Training(tmp_path / "logs", tmp_path / "runs", "compared", jobs=1)
    for group in ("compared", "own"):
        with pytest.raises(RunError, match=f"group = {group}"):
            training._run(one)
        monkeypatch.setenv("WANDB_RUN_GROUP", "own")
