"""What is delivered beside what it replaces, and beside the least code that could do the same.

    python -m tests.benchmarks.deliver          (about 4 minutes on 2 busy cores)

An int8 student of BERT-tiny's size beside a teacher of BERT-base's in `transformers.pipeline`;
`Classifier` beside bare ONNX Runtime; its start beside PyTorch's. Random weights cost what trained
ones cost. Rounds alternate; rates are medians, and a ratio is that of times in one round, told as
median, lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
FEW, SINGLE, MANY = 32, 200, 2000  # texts of a round: of the teacher, one by one, of a student
BATCH = 64
SWEEP = (16, 32, 64, 128, 256)
KD = "import time; start = time.perf_counter(); from kd.inference import Classifier; "
KD += "imported = time.perf_counter(); Classifier.from_pretrained({!r}, {!r}).predict(['a day'])"
PIPELINE = "import time; start = time.perf_counter(); from transformers import pipeline; "
PIPELINE += "imported = time.perf_counter(); pipeline('text-classification', {!r})(['a day'])"
TOLD = "; print(imported - start, time.perf_counter() - start)"


def prepare(folder: Path) -> list[str]:
    """Write teacher and student, the student as `export` does; return tweets."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    from kd.conversion import convert, quantise
    from kd.layout import INT8, ONNX, Facts, write_facts
    from kd.models import EncoderClassifier
    from kd.vocabulary import train_wordpiece
    from tests.benchmarks.speed import BASE, LABELS, TINY, tweets

    disable_progress_bar()
    train, _ = tweets(20_000)
    tokenizer = train_wordpiece(train["text"], 30_522)
    tokenizer.model_max_length = 128
    for name, sizes in (("teacher", BASE), ("student", TINY)):
        names = dict(enumerate(LABELS))
        config = AutoConfig.for_model(
            "bert",
            **sizes,
            vocab_size=30_522,
            id2label=names,
            label2id={label: place for place, label in names.items()},
        )
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    student = EncoderClassifier(path=str(folder / "student"))
    student.load(fresh_head=False)
    (folder / "student" / ONNX).parent.mkdir()
    inputs = convert(student, folder / "student" / ONNX)
    quantise(folder / "student" / ONNX, folder / "student" / INT8)
    write_facts(folder / "student", Facts(student.labels, False, 128, inputs))
    return [str(text) for text in train["text"][:MANY]]


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Return texts of all lengths alike, in an order that has nothing to do with it."""
    by_length = sorted(texts, key=len)
    chosen = [by_length[(2 * place + 1) * len(texts) // (2 * count)] for place in range(count)]
    return random.Random(0).sample(chosen, count)


def bare(folder: Path, name: str, threads: int) -> Callable[[Sequence[str]], Any]:
    """Return the least code that gives the logits of texts in ONNX Runtime."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / name, options)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    names = [one.name for one in session.get_inputs()]

    def answer(texts: Sequence[str]) -> Any:
        encodings = tokenizer.encode_batch_fast(texts)
        order = sorted(range(len(texts)), key=lambda place: len(encodings[place]))
        logits = np.empty((len(texts), 3), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            shape = len(places), len(encodings[places[-1]])
            feeds = {one: np.zeros(shape, dtype=np.int64) for one in names}
            for row, place in enumerate(places):
                ids = encodings[place].ids
                feeds["input_ids"][row, : len(ids)] = ids
                feeds["attention_mask"][row, : len(ids)] = 1
            logits[places] = session.run(None, feeds)[0]
        return logits

    return answer


Contenders = Mapping[str, tuple[int, Callable[[], object]]]


def race(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Let all answer once to warm up and then by turns; return the texts per second."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, (count, answer) in contenders.items():
            start = time.perf_counter()
            answer()
            if turn:
                rates[name].append(count / (time.perf_counter() - start))
    return rates


def tell(what: str, rates: Mapping[str, Sequence[float]], over: str, **more: object) -> None:
    """Print medians, and how many times as fast as one of them the others are in a round."""
    figures: dict[str, object] = {"what": what}
    for name, each in rates.items():
        ratios = sorted(mine / other for mine, other in zip(each, rates[over], strict=True))
        told = (median(ratios), ratios[0], ratios[-1])
        times = {} if name == over else {"times": [round(ratio, 2) for ratio in told]}
        figures[name] = {"texts_per_second": round(median(each), 1), **times}
    print(json.dumps({**figures, **more}), flush=True)


def megabytes(*files: Path) -> float:
    """Return the size of files."""
    return sum(file.stat().st_size for file in files) / 1e6


def against_pipeline(folder: Path, texts: list[str], threads: int, rounds: int) -> None:
    """Time the int8 student beside the teacher, which reads texts one by one or 32 at once."""
    from transformers import pipeline

    from kd.inference import Classifier
    from kd.layout import INT8

    ask = pipeline("text-classification", model=str(folder / "teacher"), device="cpu")
    student = Classifier.from_pretrained(folder / "student", "int8", threads)
    few = spread(texts, FEW)
    contenders = {
        "pipeline(texts)": (FEW, lambda: ask(few)),
        "pipeline(texts, batch_size=32)": (FEW, lambda: ask(few, batch_size=32)),
        "Classifier, int8": (MANY, lambda: student.predict(texts)),
    }
    rates = race(contenders, rounds)
    words = ("tokenizer.json", "tokenizer_config.json")
    teacher = megabytes(*(folder / "teacher" / name for name in ("model.safetensors", *words)))
    own = megabytes(*(folder / "student" / name for name in (INT8, "kd.json", *words)))
    sizes = {"megabytes": [round(teacher, 1), round(own, 1)], "smaller": round(teacher / own, 1)}
    for over in list(contenders)[:2]:
        both = {name: rates[name] for name in (over, "Classifier, int8")}
        tell("teacher", both, over, threads=threads, **sizes)


def against_bare(folder: Path, texts: list[str], threads: int, rounds: int) -> None:
    """Time `Classifier` beside the bare runtime: many texts, and one by one."""
    import numpy as np

    from kd.inference import Classifier
    from kd.layout import INT8, ONNX

    for backend, name in (("onnx", ONNX), ("int8", INT8)):
        student = Classifier.from_pretrained(folder / "student", backend, threads)
        least = bare(folder / "student", name, threads)
        difference = float(np.abs(student.logits(texts) - least(texts)).max())
        singles = [[text] for text in spread(texts, SINGLE)]
        both = {
            "bare": (MANY, lambda least=least: least(texts)),
            "predict": (MANY, lambda student=student: student.predict(texts)),
            "logits": (MANY, lambda student=student: student.logits(texts)),
        }
        rates = race(both, 3 * rounds)
        tell("many", rates, "bare", backend=backend, threads=threads, differs=difference)
        each = {
            "bare": (SINGLE, lambda least=least, s=singles: [least(one) for one in s]),
            "predict": (SINGLE, lambda c=student, s=singles: [c.predict(one) for one in s]),
        }
        tell("one", race(each, 3 * rounds), "bare", backend=backend, threads=threads)


def sweep(folder: Path, texts: list[str], cores: int, rounds: int) -> None:
    """Time batch sizes and threads."""
    from kd.inference import Classifier

    for backend in ("onnx", "int8"):
        contenders = {}
        for threads in sorted({1, cores}):
            for size in SWEEP:
                student = Classifier.from_pretrained(folder / "student", backend, threads)
                student.batch_size = size
                name = f"{size} texts, {threads} threads"
                contenders[name] = (MANY, lambda student=student: student.predict(texts))
        tell("sweep", race(contenders, rounds), f"{BATCH} texts, 1 threads", backend=backend)


def starts(folder: Path, rounds: int) -> None:
    """Time fresh processes by turns: the import, and the first answer after it."""
    student = str(folder / "student")
    programs = {name: KD.format(student, name) for name in ("onnx", "int8", "torch")}
    programs["pipeline"] = PIPELINE.format(student)
    seconds: dict[str, list[list[float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            command = [sys.executable, "-c", program + TOLD]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
            seconds[name].append([float(word) for word in done.stdout.split()[-2:]])
    for name, each in seconds.items():
        imported, answered = (round(median(column), 3) for column in zip(*each, strict=True))
        told = {"what": "start", "with": name, "import_s": imported, "first_answer_s": answered}
        print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--only", choices=("teacher", "bare", "start", "sweep"))
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": str(options.threads)}
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    import torch  # reads the environment

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = prepare(folder)
        if options.only in (None, "teacher"):
            against_pipeline(folder, texts, options.threads, options.rounds)
        if options.only in (None, "bare"):
            against_bare(folder, texts, options.threads, options.rounds)
        if options.only in (None, "start"):
            starts(folder, options.rounds)
        if options.only == "sweep":
            sweep(folder, texts, cores, options.rounds)


if __name__ == "__main__":
    main()
