import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd.errors import ConfigError, RunError
from kd.runs import check_name, claim, global_rank, is_reference, resolve, verify, versions

RANKS = ["RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK"]


def story(run):
    return json.loads((run.path / "manifest.json").read_text())


def version(folder, number, status="finished", command="fit", student=True):
    """Lay a version folder by hand, as an earlier run left it."""
    path = folder / f"version_{number}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"status": status, "command": command}))
    if student:
        (path / "student").mkdir()
        (path / "student" / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "2", "SLURM_PROCID": "5"}, 2),
        ({"SLURM_PROCID": "4"}, 4),
        ({"JSM_NAMESPACE_RANK": "6"}, 6),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, 0),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, 1),
        ({"GROUP_RANK": "2"}, 2),
        ({"LOCAL_RANK": "", "NODE_RANK": ""}, 0),
    ],
)
def test_rank_is_what_the_environment_tells(monkeypatch, environment, rank):
    for key in RANKS:
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert global_rank() == rank


@pytest.mark.parametrize(
    "name", ["a", "tinybert_tweets", "v1.2-x", "_", "a" * 64, "console", "com"]
)
def test_good_names_pass(name):
    assert check_name(name) == name


BAD_NAMES = [
    "../x",
    "/abs",
    "a/b",
    "a\\b",
    "a\0b",
    "a" * 300,
    "a" * 65,
    "CON",
    "nul.txt",
    "Com1",
    "",
]
BAD_NAMES += [".", "..", ".hidden", "a..b", "end.", "😀", "ä", "a b", "line\n", "~", "$HOME", "C:"]


@pytest.mark.fault(23)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ConfigError, match=r"run\.name") as caught:
        claim(tmp_path / "runs", name, command="fit")
    assert len(str(caught.value)) < 300
    assert list(tmp_path.iterdir()) == []


def race(root, barrier, answers, rounds):
    listing = os.listdir

    def slow_listing(folder):  # all have listed the folder before the first makes another
        entries = listing(folder)
        time.sleep(0.02)
        return entries

    os.listdir = slow_listing
    for _ in range(rounds):
        barrier.wait(60)
        answers.put(str(claim(root, "race", command="fit", argv=[]).path))


@pytest.mark.fault(19)
def test_processes_started_in_one_instant_get_different_directories(tmp_path):
    processes, rounds = 8, 5
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=race, args=(tmp_path, barrier, answers, rounds))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    claimed = {answers.get(timeout=60) for _ in range(processes * rounds)}
    for worker in workers:
        worker.join(60)
    answers.close()
    assert claimed == {str(tmp_path / "race" / f"version_{n}") for n in range(processes * rounds)}


@pytest.mark.fault(18)
def test_next_version_counts_by_number_and_reuses_nothing(tmp_path):
    for entry in ("version_2", "version_10", "version_x", "version_011_old"):
        (tmp_path / "a" / entry).mkdir(parents=True)
    assert claim(tmp_path, "a", command="fit").path.name == "version_11"
    (tmp_path / "a" / "version_12").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "version_13").write_text("a file")
    assert claim(tmp_path, "a", command="fit").path.name == "version_14"


def test_claim_leaves_only_a_manifest(tmp_path):
    run = claim(tmp_path, "a", command="fit")
    assert [path.name for path in run.path.iterdir()] == ["manifest.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert (run.path / "manifest.json").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.fault(23)
def test_link_out_of_the_root_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match="leads out"):
        claim(tmp_path / "runs", "a", command="fit")
    assert list((tmp_path / "outside").iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "outside")  # the root itself may be a link
    assert claim(tmp_path / "link", "b", command="fit").path.is_dir()


@pytest.mark.fault(3)
@pytest.mark.parametrize("root", ["file/runs", "/proc/kd/runs", "s3://bucket/runs", "nul\0"])
def test_unusable_root_is_one_sentence(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(RunError, match=r"run\.root") as caught:
        claim(root, "a", command="fit")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.fault(3)
def test_full_disk_shows_at_once_and_leaves_no_directory(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        claim(tmp_path, "a", command="fit")
    assert list((tmp_path / "a").iterdir()) == []


def test_manifest_starts_with_the_facts(tmp_path):
    run = claim(tmp_path, "a", command="fit", argv=["train.py", "fit"])
    facts = story(run)
    assert facts["status"] == "running"
    assert facts["command_line"] == ["train.py", "fit"]
    assert (facts["command"], facts["name"], facts["version"]) == ("fit", "a", 0)
    assert facts["pid"] == os.getpid()
    assert facts["created"].endswith("+00:00")
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert {"kd", "torch", "lightning", "transformers", "datasets"} <= set(facts["versions"])
    assert facts["checksums"] is facts["seed"] is facts["finished"] is None


def test_update_merges_and_finish_commits(tmp_path):
    run = claim(tmp_path, "a", command="fit")
    run.update(seed=1, data={"train": "f00"}, resumed_from=Path("runs/a/version_3"))
    run.update(
        data={"test": "ba2"},
        references={"runs/t": "runs/t/version_1"},
        wandb_id="w",
        results={"test/f1": 0.5},
    )
    run.write_text("config.yaml", "seed: 1\n")
    run.write_text("deep/er/note.txt", "ü")
    run.finish("failed", error="DataError: no\n  rows")
    facts = story(run)
    assert facts["data"] == {"train": "f00", "test": "ba2"}
    assert (facts["seed"], facts["resumed_from"]) == (1, "runs/a/version_3")
    assert (facts["references"], facts["wandb_id"]) == ({"runs/t": "runs/t/version_1"}, "w")
    assert (facts["status"], facts["error"]) == ("failed", "DataError: no rows")
    assert facts["results"] == {"test/f1": 0.5}
    assert facts["checksums"]["deep/er/note.txt"]["bytes"] == 2
    assert set(facts["checksums"]) == {"config.yaml", "deep/er/note.txt"}


CANARY = "c4n4ry-V3ry/Secret"


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--model.api_key={CANARY}"],
        ["--model.api_key", CANARY],
        ["--hub.token", f"-{CANARY}"],
        [f"--password={CANARY}, with {{more}}"],
        [f"OPENAI_API_KEY={CANARY}"],
        [f"--teacher.apiKey={CANARY}"],
        ["--use_token", "--secret", CANARY],
        ["--token", "--secret", CANARY],
        [f'--teacher={{"url": "x", "client_secret": "{CANARY}"}}'],
        ["--teacher", f"{{a: 1, token: {CANARY}}}"],
        [f"--headers[api_key]={CANARY}"],
        [f"https://user:{CANARY.replace('/', '')}@host/x"],
        [f"https://host/x?a=1&access_token={CANARY}"],
        [f"--header=Authorization: Bearer {CANARY}"],
        ["--header", f"Bearer {CANARY}"],
        ["--name=sk-proj-c4n4ry-0123456789"],
        ["--name", "hf_c4n4ryABCDEFGH0123456789"],
        [f"--accessTokenValue={CANARY}"],
    ],
)
def test_no_secret_of_the_command_line_reaches_the_manifest(tmp_path, arguments):
    run = claim(tmp_path, "a", command="fit", argv=["train.py", *arguments, "--data.seed=7"])
    text = (run.path / "manifest.json").read_text()
    assert "c4n4ry" not in text
    assert "***" in text
    assert "--data.seed=7" in text


def test_secrets_in_errors_and_references_are_masked_too(tmp_path):
    run = claim(tmp_path, "a", command="fit", argv=[])
    run.update(references={"https://me:c4n4ry@host/model": "x"})
    run.finish(
        "failed", error="cannot fetch https://me:p@c4n4ry@host/model with hf_c4n4ryABCDEFGH01234"
    )
    assert "c4n4ry" not in (run.path / "manifest.json").read_text()
    assert "@host/model" in story(run)["error"]


def test_ordinary_arguments_stay(tmp_path):
    plain = ["--data.max_tokens=128", "--tokenizer=x", "--config=/keys/a.yaml", "fit"]
    plain += ["--path=/hf_models_store", "--ask", "\udcff", "--run.name", "risk-free-and-safe-run"]
    assert story(claim(tmp_path, "a", command="fit", argv=plain))["command_line"] == plain


def git(*arguments):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_commit_and_dirty_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert story(claim("runs", "a", command="fit"))["git"] is None
    git("init", "-q")
    Path("file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "x")
    expected = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert story(claim("runs", "a", command="fit"))["git"] == expected
    Path("file").write_text("2")
    assert story(claim("runs", "a", command="fit"))["git"] == {**expected, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert story(claim("runs", "a", command="fit"))["git"] is None


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "link/x", "", ".", "a\0"])
def test_nothing_is_written_outside_the_run(tmp_path, name):
    run = claim(tmp_path, "a", command="fit")
    (tmp_path / "outside").mkdir()
    (run.path / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(RunError):
        run.write_text(name, "x")
    assert list((tmp_path / "outside").iterdir()) == []
    assert sorted(path.name for path in run.path.iterdir()) == ["link", "manifest.json"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    run = claim(tmp_path, "a", command="fit")
    run.write_text("config.yaml", "old")

    def broken(source, target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(RunError, match=r"config\.yaml"):
        run.write_text("config.yaml", "new")
    assert (run.path / "config.yaml").read_text() == "old"
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "manifest.json"]


@pytest.mark.fault(5)
def test_verify_finds_what_changed(tmp_path):
    run = claim(tmp_path, "a", command="fit")
    for name in ("same", "flipped", "longer", "gone", "sub/same"):
        run.write_text(name, "content")
    assert "still running" in verify(run.path)[0]
    run.finish("finished")
    (run.path / "new").write_text("not of the run")
    assert verify(run.path) == []
    (run.path / "flipped").write_text("Content")
    (run.path / "longer").write_text("contents")
    (run.path / "gone").unlink()
    assert verify(run.path) == [
        "flipped: sha256 differs",
        "gone: missing",
        "longer: 8 bytes instead of 7",
    ]
    (run.path / "manifest.json").write_text('{"half')
    with pytest.raises(RunError, match="no readable manifest"):
        verify(run.path)


def test_discard_removes_this_version_only(tmp_path):
    runs = [claim(tmp_path, "a", command="fit") for _ in range(2)]
    runs[1].discard()
    assert versions(tmp_path / "a") == [runs[0].path]


@pytest.mark.fault(6)
def test_links_and_leftovers_get_no_checksum(tmp_path):
    run = claim(tmp_path, "a", command="fit")
    (run.path / "link").symlink_to("/etc/passwd")
    (run.path / ".x.ckpt.0a1b2c3d.tmp").write_text("half")
    os.mkfifo(run.path / "pipe")
    run.finish("interrupted")
    assert story(run)["checksums"] == {}
    assert story(run)["status"] == "interrupted"


def test_newest_finished_run_is_taken_by_number(tmp_path):
    folder = tmp_path / "teacher"
    for number in range(9):
        version(folder, number)
    version(folder, 9, status="failed")
    taken = version(folder, 10)
    version(folder, 11, status="running")
    version(folder, 12, student=False)
    version(folder, 13, command="test")
    (folder / "version_14").mkdir()  # no manifest: no run
    assert resolve(folder) == (taken, taken / "student")
    assert [path.name for path in versions(folder)] == [f"version_{n}" for n in range(14)]


def test_a_version_or_its_student_means_itself(tmp_path):
    for number, status in enumerate(["finished", "interrupted", "finished"]):
        version(tmp_path / "t", number, status=status)
    for path in ("t/version_1", "t/version_1/student"):
        assert resolve(tmp_path / path).version == tmp_path / "t/version_1"
        assert resolve(path, root=tmp_path).student == tmp_path / "t/version_1/student"
    assert resolve("t", root=tmp_path).version.name == "version_2"


def test_a_run_without_a_student_tells_its_states(tmp_path):
    version(tmp_path / "t", 0, status="failed")
    version(tmp_path / "t", 1, student=False)
    version(tmp_path / "t", 2, status="running")
    version(tmp_path / "t", 3, command="predict")
    told = (
        "version_0 is failed, version_1 is finished without an exported student, "
        "version_2 is running, version_3 is a run of predict"
    )
    with pytest.raises(RunError, match=told):
        resolve(tmp_path / "t")
    with pytest.raises(RunError, match="version_1 is finished without"):
        resolve(tmp_path / "t" / "version_1")


def test_models_and_hub_ids_are_no_references(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = version(tmp_path / "t", 0) / "student"
    assert all(is_reference(path) for path in ("t", "t/version_0", "t/version_0/student", student))
    ordinary = tmp_path / "model"
    ordinary.mkdir()
    (ordinary / "config.json").write_text("{}")
    Path("lightning_logs/version_0").mkdir(parents=True)
    for path in (ordinary, "prajjwal1/bert-tiny", "none", "", "a\0b", "x" * 5000, "lightning_logs"):
        assert not is_reference(path)
    with pytest.raises(RunError, match="is no run"):
        resolve("prajjwal1/bert-tiny")


def test_real_runs_resolve(tmp_path):
    first = claim(tmp_path, "t", command="fit")
    first.write_text("student/config.json", "{}")
    first.finish("finished")
    claim(tmp_path, "t", command="fit")
    assert resolve(tmp_path / "t").version == first.path
    assert verify(first.path) == []


def test_import_is_light():
    code = "import sys, kd.runs; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
