"""How many rows a second the whole of `annotate` does, beside bare requests of `AsyncOpenAI`.

    python -m tests.benchmarks.annotate           (about 5 minutes on 2 cores)

The server is a process of its own on a core of its own, and answers at once: what is measured is
reading the file, the plan, the gate, the client, parsing, the store and the export.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from kd.annotate import annotate
from kd.data.datamodule import TextDataModule
from kd.data.sources import Source
from kd.rationales.annotators import Question, Reply, Take
from kd.rationales.api import APIAnnotator
from kd.rationales.prompts import Prompt
from tests.benchmarks.memory import distinct
from tests.benchmarks.speed import LABELS

CONCURRENCY = 16
BARE = 2000  # requests


class Watched(APIAnnotator):
    """An annotator that takes note of its memory after a tenth of the answers and at the end."""

    expected = 0
    answers = 0
    peaks_mb: tuple[float, ...] = ()

    def answer(self, questions: Iterable[Question], labels: Sequence[str], take: Take) -> None:
        """Answer, and watch."""
        started, cpu = time.perf_counter(), time.process_time()

        def watch(question: Question, reply: Reply) -> None:
            take(question, reply)
            self.answers += 1
            if self.answers in (self.expected // 10, self.expected):
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                self.peaks_mb += (round(peak, 1),)

        super().answer(questions, labels, watch)
        self.seconds = time.perf_counter() - started
        self.cpu_seconds = time.process_time() - cpu


@contextmanager
def serving() -> Iterator[str]:
    """Start a server on the first core, move to the last one, and yield the server's URL."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.rationales.server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.sched_setaffinity(0, {cores[-1]})
    with server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        assert server.stdin is not None
        server.stdin.close()


async def bare(url: str, texts: Sequence[str]) -> tuple[float, float]:
    """Return the seconds, and those of the CPU, of requests when nothing is made of the answers."""
    from openai import AsyncOpenAI

    prompt, left = Prompt(), iter(texts)
    async with AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:

        async def work() -> None:
            for text in left:
                messages = prompt.messages(Question(text), LABELS)
                await client.chat.completions.create(model="tiny", messages=messages)

        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return time.perf_counter() - started, time.process_time() - cpu


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    frame = distinct(rows)
    with tempfile.TemporaryDirectory() as folder, serving() as url:
        path = Path(folder, "rows.csv")
        frame.assign(label=[LABELS[label] for label in frame["label"]]).to_csv(path, index=False)
        few = frame["text"][:BARE].tolist()
        bare_seconds, bare_cpu = asyncio.run(bare(url, few))
        annotator = Watched("tiny", "custom", url, concurrency=CONCURRENCY)
        annotator.expected = rows
        data = TextDataModule(Source(train=str(path), validation=str(path)))
        started = time.perf_counter()
        with redirect_stdout(sys.stderr):
            annotate(annotator, data, "", name="speed", root=folder)
        seconds = time.perf_counter() - started
    found = {
        "rows": rows,
        "rows_per_second": round(rows / annotator.seconds),
        "rows_per_cpu_second": round(rows / annotator.cpu_seconds),
        "rows_per_second_with_plan_and_export": round(rows / seconds),
        "bare_requests_per_second": round(len(few) / bare_seconds),
        "bare_requests_per_cpu_second": round(len(few) / bare_cpu),
        "peak_mb_at_a_tenth": annotator.peaks_mb[0],
        "peak_mb_at_the_end": annotator.peaks_mb[-1],
    }
    ratio = found["rows_per_cpu_second"] / found["bare_requests_per_cpu_second"]
    print(json.dumps({**found, "ratio_per_cpu_second": round(ratio, 2)}))


if __name__ == "__main__":
    main()
