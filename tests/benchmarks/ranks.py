"""What a second rank brings: `kd` beside raw PyTorch with DistributedDataParallel, in one run.

    python -m tests.benchmarks.ranks            (about 10 minutes on 2 quiet cores)

The work: steps of 48 tweets, a student of BERT-tiny's size, label and softened logits half and
half, the teacher's answers being known. Raw PyTorch takes the same batches, model and losses, and
nothing else; once with DistributedDataParallel as it is, once with the options that kd gives it.
Each rank has one thread. Timed are the steps after the first 25; every figure is the median of the
rounds, in which all five follow one another.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from operator import truediv
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from kd.data.collate import TrainingBatches
from kd.data.datamodule import TextDataModule
from kd.data.encode import View
from kd.data.sources import Source
from kd.recipes import DDP_OPTIONS
from kd.vocabulary import train_wordpiece
from tests.benchmarks.speed import BATCH, LABELS, LENGTH, ROOT, TINY, tweets

TUNED = "the same, tuned"  # as kd's
SEED = 42  # of the order
WARM = 25  # steps before the clock starts, and between two lines of kd's metrics.csv


def files(folder: Path) -> dict[str, str]:
    return {role: str(folder / f"{role}.parquet") for role in ("train", "validation")}


def prepare(folder: Path, steps: int) -> None:
    """Write data, models and the recipe."""
    frames = tweets(steps * BATCH)
    for path, frame in zip(files(folder).values(), frames, strict=True):
        frame[["text", "label"]].astype({"label": int}).to_parquet(path, index=False)
    tokenizer = train_wordpiece(frames[0]["text"], 8000)
    tokenizer.model_max_length = 512
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    config = AutoConfig.for_model("bert", **TINY, vocab_size=30522, **names)
    for name in ("teacher", "student"):
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    student, teacher = (
        {"class_path": kind, "init_args": {"path": str(folder / name)}}
        for kind, name in (("EncoderClassifier", "student"), ("ModelTeacher", "teacher"))
    )
    objectives = {
        "labels": {"class_path": "HardLabel", "init_args": {"weight": 0.5}},
        "logits": {"class_path": "LogitKD", "init_args": {"weight": 0.5}},
    }
    recipe = {
        "run": {"name": "ranks", "root": str(folder / "runs")},
        "model": {"student": student, "teacher": teacher, "objectives": objectives},
        "data": {"source": files(folder), "label_names": list(LABELS), "batch_size": BATCH},
        "seed_everything": SEED,
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": WARM},
    }
    (folder / "ranks.yaml").write_text(yaml.safe_dump(recipe))


def raw(folder: Path, rank: int, ranks: int, tuned: bool) -> None:
    """Train as one rank in raw PyTorch; print the seconds of the timed steps."""
    data = TextDataModule(Source(**files(folder)), label_names=list(LABELS))
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    data.connect({"student": View(tokenizer, LENGTH, "")}, unlabelled=True)
    batches = TrainingBatches(data.encoded("train"), BATCH, SEED, rank, ranks)
    soft = torch.randn(len(data.rows["train"]), len(LABELS))
    student = AutoModelForSequenceClassification.from_pretrained(folder / "student").train()
    model = student
    if ranks > 1:
        meeting = f"file://{folder}/meeting"
        distributed.init_process_group("gloo", meeting, rank=rank, world_size=ranks)
        model = DistributedDataParallel(student, **(DDP_OPTIONS if tuned else {}))
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    for number, batch in enumerate(batches):
        if number == WARM:
            started = time.perf_counter()
        logits = model(**batch.views["student"]).logits
        hard = functional.cross_entropy(logits, batch.labels)
        softened = functional.kl_div(
            functional.log_softmax(logits / 2, dim=-1),
            functional.log_softmax(soft[batch.index] / 2, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        (0.5 * hard + 0.5 * 4 * softened).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(json.dumps({"seconds": time.perf_counter() - started}))


def wait_for(commands: list[list[str]]) -> str:
    """Run programs side by side, each with one thread; return what the first printed."""
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=quiet,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("\n".join(told))
    return told[0]


def raw_seconds(folder: Path, ranks: int, tuned: bool = False) -> float:
    (folder / "meeting").unlink(missing_ok=True)
    program = ["-m", "tests.benchmarks.ranks", f"--folder={folder}", f"--ranks={ranks}"]
    program += ["--tuned"] if tuned else []
    told = wait_for([[*program, f"--rank={rank}"] for rank in range(ranks)])
    return float(json.loads(told.splitlines()[-1])["seconds"])


def kd_seconds(folder: Path, ranks: int) -> float:
    words = ["train.py", "fit", f"--config={folder}/ranks.yaml", f"--trainer.devices={ranks}"]
    told = wait_for([[*words, "--trainer.strategy=ddp"] if ranks > 1 else words])
    run = Path(ROOT, told.split("run = ")[1].splitlines()[0])
    with (run / "metrics.csv").open() as file:
        speeds = [line["speed/rows_per_second"] for line in csv.DictReader(file)]
    return sum(WARM * BATCH / float(speed) for speed in [one for one in speeds if one][1:])


def show(seconds: dict[str, list[float]], rows: int) -> None:
    """Print medians, and what is lost of the second rank's gain."""
    table = Table("", "1 rank", "2 ranks", "gain", box=None)
    gains = {}
    for name in ("raw PyTorch", TUNED, "kd"):
        one, two = (seconds[f"{name} {ranks}"] for ranks in (1, 2))
        gains[name] = [alone / shared for alone, shared in zip(one, two, strict=True)]
        speeds = [f"{rows / statistics.median(took):,.0f} rows/s" for took in (one, two)]
        table.add_row(name, *speeds, f"{statistics.median(gains[name]):.2f}")
    console = Console(width=100)
    console.print(table, highlight=False)
    pairs = zip(gains["kd"], gains["raw PyTorch"], strict=True)
    lost = sorted(1 - ours / theirs for ours, theirs in pairs)
    longer, than_tuned = (
        statistics.median(map(truediv, seconds["kd 2"], seconds[f"{name} 2"])) - 1
        for name in ("raw PyTorch", TUNED)
    )
    print(
        f"of raw PyTorch's gain kd loses {statistics.median(lost):.1%} "
        f"({lost[0]:.1%} to {lost[-1]:.1%}); on 2 ranks it takes {longer:.1%} longer, "
        f"{than_tuned:.1%} longer than the tuned"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a rank in raw PyTorch
    parser.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.folder:
        raw(options.folder, options.rank, options.ranks, options.tuned)
        return
    steps = options.steps // WARM * WARM
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, steps)
        kd_seconds(folder, 1)  # fills the teacher's cache
        for _ in range(options.rounds):
            for ranks in (1, 2):
                seconds.setdefault(f"raw PyTorch {ranks}", []).append(raw_seconds(folder, ranks))
                seconds.setdefault(f"kd {ranks}", []).append(kd_seconds(folder, ranks))
            tuned = raw_seconds(folder, 2, tuned=True)
            seconds.setdefault(f"{TUNED} 1", []).append(seconds["raw PyTorch 1"][-1])  # it has none
            seconds.setdefault(f"{TUNED} 2", []).append(tuned)
    show(seconds, (steps - WARM) * BATCH)


if __name__ == "__main__":
    main()
