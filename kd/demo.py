"""A web page on which student and teacher answer what is typed, side by side.

gradio makes the page; it is imported when a page is opened, and is told to ask nothing of any other
machine. This room knows runs and a :class:`~kd.inference.Classifier`, and no more of models.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kd.console import print_line
from kd.errors import ConfigError, KDError, RunError
from kd.inference import Classifier, Prediction
from kd.origins import Taught, run_of, teachers_of
from kd.predictions import VALIDATION, read_predictions

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["demo"]

_LONGEST_EXAMPLE = 120  # characters: three lines of a phone
_MOST_EXAMPLES = 6
_MOST_CHARACTERS = 10_000
_TURNS = 3  # of which the fastest tells the time
_CSS = ".gradio-container {max-width: 52rem !important; margin: auto !important}"


def demo(
    model: str,
    teacher: str | None = None,
    backend: Literal["auto", "torch", "onnx", "int8"] = "auto",
    port: int | None = None,
    threads: int | None = None,
) -> None:
    """Open a web page where a typed text is answered by student and teacher, side by side.

    It is reached from this machine alone, and asks nothing of any other.

    Args:
        model: Exported folder, run such as runs/quickstart, or hub id.
        teacher: The same of a teacher; null is the one of the student's run, where it is there and
            has one model.
        backend: What computes the student's answers; auto takes ONNX where the folder has it.
        port: Port of the page; null takes the first free one from 7860.
        threads: Threads of a prediction; null leaves it to the backend.

    Raises:
        ConfigError: If gradio is missing, or the port is taken.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("kd demo needs gradio: pip install gradio.") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with suppress(KeyboardInterrupt):
        run = run_of(model)
        teachers = teachers_of(run) if run else []
        models = {"Student": Classifier.from_pretrained(model, backend, threads)}
        told = "alone: give --teacher to see both"
        if taught := Taught(teacher) if teacher else teachers[0] if len(teachers) == 1 else None:
            try:
                models["Teacher"] = Classifier.from_pretrained(threads=threads, **vars(taught))
                told = f"beside its teacher {taught.path}"
            except KDError:
                if teacher:
                    raise
        page = _page(models, _examples(run) if run else [])
        theme = gradio.themes.Default(  # with the fonts of the reader's machine
            primary_hue="blue", font=["system-ui"], font_mono=["ui-monospace", "monospace"]
        )
        try:
            _, url, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,
                theme=theme,
                css=_CSS,
            )
        except OSError as error:
            raise ConfigError(f"port {port} is taken: give another, or none.") from error
        print_line(f"{model} is at {url} {told}; Ctrl-C ends it")
        page.block_thread()


def _page(models: Mapping[str, Classifier], examples: Sequence[str]) -> Blocks:
    import gradio

    for model in models.values():
        model.predict(["the first text takes longer than the rest"])

    def answer(text: str) -> list[Any]:
        text = text.strip()[:_MOST_CHARACTERS]
        if not text:
            return [None, ""] * len(models) + ["Type a text first."]
        timed = [_timed(model, text) for model in models.values()]
        shown = []
        for model, (prediction, milliseconds) in zip(models.values(), timed, strict=True):
            shown += [prediction.probabilities, f"{milliseconds:.2f} ms with {model.backend}"]
        return [*shown, _verdict(*timed) if len(timed) == 2 else ""]

    page: Blocks = gradio.Blocks(title="kd: student and teacher", analytics_enabled=False)
    with page:
        gradio.Markdown("# " + " and ".join(models).capitalize())
        box = gradio.Textbox(label="Text", max_length=_MOST_CHARACTERS)
        button = gradio.Button("Classify", variant="primary")
        outputs: list[Any] = []
        with gradio.Row():
            for name in models:
                with gradio.Column(min_width=260):
                    outputs.append(gradio.Label(label=name, elem_id=name.lower()))
                    outputs.append(gradio.Markdown(elem_id=f"{name.lower()}-time"))
        outputs.append(gradio.Markdown(elem_id="verdict"))
        if examples:
            gradio.Examples(
                [[text] for text in examples],
                box,
                outputs,
                answer,
                cache_examples=False,
                run_on_click=True,
                label="Examples that training did not see",
            )
        gradio.on([box.submit, button.click], answer, box, outputs)
    return page


def _timed(model: Classifier, text: str) -> tuple[Prediction, float]:
    """Return what a model says of a text, and the milliseconds of the fastest of a few turns."""
    times = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        (prediction,) = model.predict([text])
        times.append(1000 * (time.perf_counter() - start))
    return prediction, min(times)


def _verdict(student: tuple[Prediction, float], teacher: tuple[Prediction, float]) -> str:
    """Return in words how the two compare."""
    both, its = (" and ".join(found.labels) or "nothing" for found, _ in (student, teacher))
    told = f"Both say {both}" if both == its else "They differ"
    return f"{told}; the student is {teacher[1] / student[1]:.1f} times as fast, as they run here."


def _examples(version: Path) -> list[str]:
    """Return validation texts: one for each class that both choose, and one where they differ."""
    try:
        rows = read_predictions(version / VALIDATION)
    except RunError:
        return []
    student = rows.student.argmax(axis=1).tolist()
    teacher = student if rows.teacher is None else rows.teacher.argmax(axis=1).tolist()
    found: dict[int | None, str] = {}
    for text, mine, its in zip(rows.texts, student, teacher, strict=True):
        if len(text) <= _LONGEST_EXAMPLE:
            found.setdefault(mine if mine == its else None, text)
    return list(found.values())[:_MOST_EXAMPLES]
