"""What `import kd` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kd


def test_all_is_sorted_and_true() -> None:
    # constants, then classes, as ruff keeps them; OCR looks like one
    assert kd.__all__ == sorted(kd.__all__, key=lambda name: (not name.isupper(), name))
    assert set(kd.__all__) == set(kd._ROOM_OF)
    for name in kd.__all__:
        assert getattr(kd, name).__name__ == name


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = kd.Trainer


def test_import_is_cheap() -> None:
    script = "import sys, kd; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
