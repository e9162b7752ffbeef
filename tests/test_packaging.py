"""What is installed: floors with reasons, pins without hosts, no other surprise."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = (ROOT / "constraints.txt").read_text().splitlines()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_pins_are_plain_and_cover_what_is_declared() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.!]+", pin) for pin in PINS)
    pinned = {normal(pin.split("==")[0]) for pin in PINS}
    declared = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    names = {normal(re.split(r"[\[<>=!]", line)[0]) for line in declared}
    assert names - {"kd"} <= pinned


def test_torch_is_pinned_to_a_release_that_has_a_small_build() -> None:
    """A bare torch takes the newest release and gigabytes of CUDA with it."""
    assert "torch==2.13.0" in PINS


def test_what_the_seven_packages_leave_out_is_declared() -> None:
    names = {re.split(r"[<>=!]", line)[0] for line in PROJECT["dependencies"]}
    assert {"jsonargparse[signatures]", "nltk"} <= names


def test_malware_releases_are_out_of_reach() -> None:
    assert "lightning>=2.6.4" in PROJECT["dependencies"]


def test_every_floor_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    lines = [line for line in block.splitlines() if line.startswith('  "')]
    assert lines
    assert not [line for line in lines if "#" not in line]
