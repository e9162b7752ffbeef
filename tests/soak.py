"""Kill one training again and again, and compare what comes out with one that nobody touched.

    python -m tests.soak --kills 50
    python -m tests.soak --kills 10 --ranks 2 --torchrun

Half of the kills go to a training on one rank, half to one on two. Each is kill -9, SIGTERM or
Ctrl-C, at a random moment, to the first process, to another rank or to all; then the same command
continues. At the end weights, optimizer, metrics and the order of the rows are compared, bit for
bit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from lightning import Callback

from kd.console import print_line
from kd.processes import process_identity
from kd.runs import read_manifest, versions

ROOT = Path(__file__).parents[1]
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
PATIENCE = 60  # seconds that a training may take to end


class Journal(Callback):
    """Write a line for every batch of every rank: what the training is about to learn from.

    Args:
        folder: Where each process writes a file of its own.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._write(trainer, batch.index.tolist())

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self._write(trainer, None)

    def _write(self, trainer, rows):
        epoch, batch = trainer.datamodule.place
        line = {"epoch": epoch, "batch": batch, "rank": trainer.global_rank, "rows": rows}
        with (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def make_world(folder: Path, epochs: int = 4) -> Path:
    """Write data, a teacher and a recipe that has all that makes a resume hard; return the recipe.

    Dropout, variants that the teacher judges, accumulation over batches that do not divide the
    epoch, validation inside of it, schedules of rate and temperature, a short last batch.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from kd.data.sample import LABELS, generate
    from kd.vocabulary import train_wordpiece

    texts = generate("train")[:150]
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((t, LABELS[c]) for t, c in texts)])
    tokenizer = train_wordpiece([text for text, _ in texts], 300)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "bert",
        **sizes,
        intermediate_size=32,
        vocab_size=len(tokenizer),
        id2label=dict(enumerate(LABELS)),
        label2id={name: place for place, name in enumerate(LABELS)},
    )
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    temperature = {"start": 4.0, "end": 1.0}
    encoder = {"config": {"model_type": "bert", **sizes}, "vocabulary_size": 300, "dropout": 0.1}
    teacher = {"path": str(folder / "teacher")}
    logits = {"temperature": temperature, "weight": 0.5}
    drop = {"class_path": "WordDrop", "init_args": {"share": 0.2}}
    augment = {"augmenters": [drop], "flip_confidence": 0.35}
    recipe = {
        "model": {
            "student": {"class_path": "EncoderClassifier", "init_args": encoder},
            "teacher": {"class_path": "ModelTeacher", "init_args": teacher},
            "objectives": {
                "labels": {"class_path": "HardLabel", "init_args": {"weight": 0.5}},
                "logits": {"class_path": "LogitKD", "init_args": logits},
            },
            "learning_rate": 2e-2,
        },
        "data": {
            "source": {"train": str(folder / "rows.csv")},
            "batch_size": 8,
            "eval_batch_size": 4,
            "max_length": 24,
            "augment": augment,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": epochs,
            "accumulate_grad_batches": 3,
            "val_check_interval": 11,
            "log_every_n_steps": 1,
        },
        "run": {"name": "soak", "save_every": 4, "resume": "auto"},
    }
    path = folder / "soak.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def differences(one: Path, other: Path) -> list[str]:
    """Return in what two finished runs differ; nothing where a single bit would show."""
    found = []
    for name in ("best.ckpt", "resume.ckpt"):
        files = [run / "checkpoints" / name for run in (one, other)]
        ours, theirs = (torch.load(file, weights_only=True) for file in files)
        keys = [key for key in ours if key in STATES or "DataModule" in key]
        found += [f"{name}: {key}" for key in keys if not _same(ours[key], theirs[key])]
        scores = [
            [state.get("best_model_score") for state in kept["callbacks"].values()]
            for kept in (ours, theirs)
        ]
        found += [] if _same(*scores) else [f"{name}: best score"]
    for name in ("student/model.safetensors", "validation.parquet"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    measured, again = (_metrics(run / "metrics.csv") for run in (one, other))
    found += [f"metrics.csv: {line}" for line in measured if line not in again][:3]
    found += [f"metrics.csv, more: {line}" for line in again if line not in measured][:3]
    return found + ([] if len(measured) == len(again) else ["metrics.csv: number of lines"])


def _same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _metrics(path: Path) -> list[dict[str, str]]:
    """Return what was measured, without how fast."""
    with path.open(newline="") as file:
        lines = [
            {name: cell for name, cell in line.items() if cell and not name.startswith("speed/")}
            for line in csv.DictReader(file)
        ]
    return [line for line in lines if line.keys() - {"step", "epoch"}]


def rows_of(journal: Path) -> dict[tuple[int, int, int], list[int]]:
    """Return the rows of each batch by epoch, batch and rank; the same whenever it was learnt."""
    seen: dict[tuple[int, int, int], list[int]] = {}
    for file in journal.glob("*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            if line["rows"] is not None:
                key = line["epoch"], line["batch"], line["rank"]
                assert seen.setdefault(key, line["rows"]) == line["rows"], f"{key}: other rows"
    return seen


def command(recipe: Path, root: Path, journal: Path, ranks: int = 1) -> list[str]:
    """Return the command line of a training."""
    spec = json.dumps([{"class_path": "tests.soak.Journal", "init_args": {"folder": str(journal)}}])
    words = ["fit", "--config", str(recipe), f"--run.root={root}", f"--trainer.callbacks={spec}"]
    return words + ([f"--trainer.devices={ranks}", "--trainer.strategy=ddp"] if ranks > 1 else [])


def start(words: list[str], log: Path, launcher: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a training in a process group of its own."""
    clean = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    more = {"KD_ALLOW_IMPORTS": "tests", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "kd", *words],
            cwd=ROOT,
            env={**clean, **more},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def lines_of(journal: Path) -> int:
    """Return how many batches were begun, over all ranks."""
    return sum(file.read_bytes().count(b"\n") for file in journal.glob("*.jsonl"))


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = [int(pid) for pid in path.read_text().split()] if path.exists() else []
    return [pid for pid in found if b"kd" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(processes: Iterable[int], seconds: float = PATIENCE) -> None:
    """Wait until processes are gone; `TimeoutError` if they stay."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in processes if process_identity(pid)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still there: {left}")
        time.sleep(0.1)


def disturb(
    words: list[str], folder: Path, kills: int, draw: random.Random, launcher: list[str]
) -> dict[str, int]:
    """Run a training to its end against a number of kills; return how often each kind was."""
    journal, log, done = folder / "journal", folder / "log.txt", dict[str, int]()
    journal.mkdir(parents=True)
    while True:
        workers = draw.choice((1, 2))  # of the augmentation, the only ones there are
        process = start([*words, f"--data.augment.processes={workers}"], log, launcher)
        if sum(done.values()) < kills:
            before = lines_of(journal)
            wanted = before + draw.choice((0, 1, *range(12, 40)))
            while process.poll() is None and lines_of(journal) < wanted:
                time.sleep(0.002)
            time.sleep(draw.random() * (8.0 if wanted == before else 0.05))
        ends = process.poll() is None and sum(done.values()) < kills
        if ends:
            how = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGINT))
            others = _children(process)
            target = draw.choice(("first", "all", *(["other"] if others else [])))
            aims = {"first": [process.pid], "all": [process.pid, *others]}
            for pid in aims.get(target) or [draw.choice(others)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, how)
            name = f"{how.name} to {target}"
            done[name] = done.get(name, 0) + 1
        code = process.wait(PATIENCE if ends else None)
        if ends:
            wait_for(others)
        if code == 0:
            return done
        if not ends:
            raise SystemExit(f"a training that nobody touched ended with {code}: see {log}")
        wanted_code = {signal.SIGTERM: 143, signal.SIGINT: 130}.get(how)
        if not launcher and wanted_code not in (None, code):  # torchrun's is always 1
            raise SystemExit(f"{name} ended with {code} instead of {wanted_code}: see {log}")


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="trainings to kill")
    parser.add_argument("--folder", type=Path, help="where to work; it is kept")
    parser.add_argument("--torchrun", action="store_true", help="it starts the processes")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak_"))
    folder.mkdir(exist_ok=True)
    each = given.kills // len(given.ranks)
    recipe = make_world(folder, epochs=max(12, each))  # long enough for all of them
    draw, failed = random.Random(given.seed), False
    for ranks in given.ranks:
        launcher = [*TORCHRUN, f"--nproc-per-node={ranks}"] if given.torchrun else []
        began, ends = time.monotonic(), dict[str, Path]()
        for name, kills in (("whole", 0), ("killed", each)):
            place = folder / f"{name}_{ranks}"
            shutil.rmtree(place, ignore_errors=True)
            words = command(recipe, place / "runs", place / "journal", ranks)
            done = disturb(words, place, kills, draw, launcher)
            ends[name] = versions(place / "runs" / "soak")[-1]
            print_line(f"{ranks} ranks, {name}: {sum(done.values())} kills, {json.dumps(done)}")
        wrong = differences(ends["whole"], ends["killed"])
        rows = [rows_of(folder / f"{name}_{ranks}" / "journal") for name in ends]
        wrong += [] if rows[0] == rows[1] else ["order of the rows"]
        resumed = len(versions(ends["killed"].parent))
        steps = read_manifest(ends["whole"])["results"]["steps"]
        told = "; ".join(wrong) or "weights, optimizer, metrics and rows are equal, bit for bit"
        took = time.monotonic() - began
        print_line(f"{ranks} ranks, {steps} steps in {resumed} runs, {took:.0f} s: {told}")
        failed |= bool(wrong)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
