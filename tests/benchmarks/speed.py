"""How fast `kd` distils, beside a Trainer loop and beside raw PyTorch, all in one run.

    python -m tests.benchmarks.speed            (about 10 minutes on 2 quiet cores)

The work: 1,920 tweets, 3 epochs, batches of 48, a teacher of BERT-base's size and a student of
BERT-tiny's with random weights, which cost what trained ones cost. Every figure is the median of
the rounds; a Trainer runs a stated part of the rows, scaled up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.data.sources import Source, read
from kd.vocabulary import train_wordpiece

ROOT = Path(__file__).parents[2]
TWEETS = ROOT.parent / "shared/data/tweeteval_sentiment"  # real ones, where they are at hand
LABELS = ("negative", "neutral", "positive")
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
EPOCHS, BATCH, LENGTH = 3, 48, 128


def tweets(rows: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training and validation tweets: real ones, or the built-in corpus's."""
    if TWEETS.is_dir():
        train = pd.read_parquet(TWEETS / "train.parquet")
        val = pd.read_parquet(TWEETS / "validation.parquet")
    else:
        tables = [read(Source(path="sample", train="teacher"), r) for r in ("train", "validation")]
        train, val = (table.frame for table in tables)
    train = pd.concat([train] * -(-rows // len(train)))
    return train.sample(rows, random_state=0), val.head(200)


def prepare(folder: Path, rows: int) -> dict[str, str]:
    """Write data and models; return their paths."""
    train, val = tweets(rows)
    paths = {name: str(folder / name) for name in ("teacher", "student")}
    for name, frame in (("train", train), ("val", val)):
        paths[name] = str(folder / f"{name}.parquet")
        frame[["text", "label"]].astype({"label": int}).to_parquet(paths[name], index=False)
    tokenizer = train_wordpiece(train["text"], 8000)
    tokenizer.model_max_length = 512
    for name, sizes in (("teacher", BASE), ("student", TINY)):
        config = AutoConfig.for_model(
            "bert",
            **sizes,
            vocab_size=30522,
            id2label=dict(enumerate(LABELS)),
            label2id={label: place for place, label in enumerate(LABELS)},
        )
        AutoModelForSequenceClassification.from_config(config).save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    recipe = {
        "run": {"name": "speed", "root": str(folder / "runs")},
        "model": {
            "student": {"class_path": "EncoderClassifier", "init_args": {"path": paths["student"]}},
            "teacher": {"class_path": "ModelTeacher", "init_args": {"path": paths["teacher"]}},
            "objectives": {
                "labels": {"class_path": "HardLabel", "init_args": {"weight": 0.5}},
                "logits": {"class_path": "LogitKD", "init_args": {"weight": 0.5}},
            },
        },
        "data": {
            "source": {"train": paths["train"], "validation": paths["val"]},
            "label_names": list(LABELS),
            "batch_size": BATCH,
            "max_length": LENGTH,
        },
        "trainer": {"max_epochs": EPOCHS},
    }
    paths["recipe"] = str(folder / "speed.yaml")
    Path(paths["recipe"]).write_text(yaml.safe_dump(recipe))
    return paths


def run(command: list[str]) -> tuple[float, str]:
    """Run a program; return its seconds from the start of the process, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started, done.stdout


def trainer(paths: dict[str, str], pad: str, rows: int, part: int, device: str) -> dict[str, float]:
    """Time the Trainer on a part of the rows and one epoch, and scale it up."""
    command = [sys.executable, "-m", "tests.benchmarks.trainer", "--pad", pad, "--rows", str(part)]
    command += [f"--{name}={paths[name]}" for name in ("teacher", "student", "train")]
    took, printed = run([*command, f"--device={device}"])
    train = json.loads(printed.splitlines()[-1])["train_s"]
    return {"total": took - train + train * EPOCHS * rows / part}


def raw(paths: dict[str, str], device: str) -> dict[str, float]:
    """Time the raw loop."""
    command = [sys.executable, "-m", "tests.benchmarks.raw", f"--device={device}"]
    command += [f"--{name}={paths[name]}" for name in ("teacher", "student", "train", "val")]
    took, printed = run(command)
    told = json.loads(printed.splitlines()[-1])
    return {
        "total": took,
        "work": told["total_s"],
        "teacher": told["teacher_s"],
        "student": told["student_s"],
    }


def distil(paths: dict[str, str], device: str, *changes: str) -> dict[str, float]:
    """Time `kd`, from the start of the process to the box at the end."""
    accelerator = "cpu" if device == "cpu" else "gpu"
    command = [sys.executable, "train.py", "fit", "--config", paths["recipe"]]
    took, printed = run([*command, f"--trainer.accelerator={accelerator}", *changes])
    folder = printed.split("run = ")[1].splitlines()[0]
    manifest = json.loads((ROOT / folder / "manifest.json").read_text())
    seconds = manifest["seconds"]
    return {
        "total": took,
        "work": sum(seconds.values()) - seconds["start"],
        "teacher": seconds["teacher"],
        "student": seconds["training"] + seconds["validation"],
        "asked": float(printed.split(" texts, ")[1].split(" asked")[0].replace(",", "")),
    }


def show(results: dict[str, list[dict[str, float]]], notes: dict[str, str]) -> None:
    """Print medians and ratios."""
    middle = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    table = Table("", "whole process", "after start-up", "teacher", "student's epochs", box=None)
    for name, figures in middle.items():
        cells = [figures.get(key) for key in ("total", "work", "teacher", "student")]
        shown = ["" if value is None else f"{value:.1f} s" for value in cells]
        table.add_row(f"{name}{notes.get(name, '')}", *shown)
    console = Console(width=120)
    console.print(table, highlight=False)
    cold, warm, limit = middle["kd"], middle["kd, warm cache"], middle["raw PyTorch"]
    lines = [
        f"kd against {name}: {figures['total'] / cold['total']:.1f} times as fast"
        for name, figures in middle.items()
        if name.startswith("Trainer")
    ]
    lines += [
        f"kd against raw PyTorch after start-up: {cold['work'] / limit['work']:.2f} of its time",
        f"student's epochs, warm: {warm['student'] / limit['student']:.2f} of raw PyTorch's",
        f"texts asked of the teacher: cold {cold['asked']:,.0f}, warm {warm['asked']:,.0f}",
    ]
    console.print("\n".join(lines), highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1920)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--part", type=int, default=0, help="rows for a Trainer; 0 chooses")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    parts = {"max": options.part or 96, "longest": options.part or 384}
    if options.device != "cpu" and not options.part:
        parts = dict.fromkeys(parts, min(options.rows, 9600))
    results: dict[str, list[dict[str, float]]] = {}
    notes = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = prepare(Path(folder), options.rows)
        for number in range(options.rounds):
            for pad, part in parts.items():
                name = f"Trainer, --pad {pad}"
                notes[name] = f" ({part} rows of {options.rows * EPOCHS:,}, scaled)"
                one = trainer(paths, pad, options.rows, part, options.device)
                results.setdefault(name, []).append(one)
            results.setdefault("raw PyTorch", []).append(raw(paths, options.device))
            root = f"--run.root={folder}/runs_{number}"
            results.setdefault("kd", []).append(distil(paths, options.device, root))
            other = (root, "--seed_everything=7", "--model.objectives.logits.temperature=4")
            results.setdefault("kd, warm cache", []).append(distil(paths, options.device, *other))
    show(results, notes)


if __name__ == "__main__":
    main()
