"""What many rows cost in memory: a fit with tiny models on 100,000 and on 1,000,000 rows.

    python -m tests.benchmarks.memory           (about 10 minutes on 2 cores)

Everything is counted: reading the file, encoding, asking the teacher into its cache, one epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import pandas as pd
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.data.sources import Source, read
from kd.vocabulary import train_wordpiece
from tests.benchmarks.speed import LABELS, ROOT

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"intermediate_size": 32, "max_position_embeddings": 64}


def distinct(rows: int) -> pd.DataFrame:
    """Return tweets of the built-in corpus, each time with another number."""
    table = read(Source(path="sample", train="teacher"), "train").frame
    texts, labels = table["text"].tolist(), table["label"].tolist()
    once = list(zip(texts, labels, strict=True))
    pairs = ((f"{text} {turn}", label) for turn in range(rows) for text, label in once)
    return pd.DataFrame(list(islice(pairs, rows)), columns=["text", "label"])


def peak_gb(folder: Path, rows: int) -> tuple[float, float]:
    """Fit on so many rows in a process of its own; return its peak memory and its seconds."""
    frame = distinct(rows)
    frame.to_csv(folder / "rows.csv", index=False)
    model = folder / "model"
    if not model.is_dir():
        tokenizer = train_wordpiece(frame["text"][:20000], 3000)
        names = dict(enumerate(LABELS))
        config = AutoConfig.for_model(
            "bert",
            **TINY,
            vocab_size=len(tokenizer),
            id2label=names,
            label2id={label: place for place, label in names.items()},
        )
        AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
        tokenizer.save_pretrained(model)
    terms = {"logits": {"class_path": "LogitKD"}, "labels": {"class_path": "HardLabel"}}
    recipe = {
        "run": {"name": f"rows_{rows}", "root": str(folder / "runs")},
        "model": {
            "student": {"class_path": "EncoderClassifier", "init_args": {"path": str(model)}},
            "teacher": {"class_path": "ModelTeacher", "init_args": {"path": str(model)}},
            "objectives": terms,
        },
        "data": {
            "source": {"train": str(folder / "rows.csv")},
            "label_names": list(LABELS),
            "validation_fraction": 0.01,
            "batch_size": 512,
            "max_length": 32,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    file = folder / "memory.yaml"
    file.write_text(yaml.safe_dump(recipe))
    script = (
        "import json, resource, sys\nfrom kd.cli import main\nmain(sys.argv[1:])\n"
        "print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, "fit", "--config", str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    took = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return json.loads(done.stdout.splitlines()[-1]) * unit / 1e9, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            peak, took = peak_gb(Path(folder), rows)
            sys.stdout.write(f"{rows:>9,} rows: peak {peak:.2f} GB, {took:.0f} s\n")


if __name__ == "__main__":
    main()
