from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from kd.errors import RunError
from kd.predictions import Predictions, read_predictions, write_predictions

LABELS = ("bad", "so-so", "good")


def made(**changes):
    random = np.random.default_rng(0)
    return Predictions(
        **{
            "labels": LABELS,
            "multi_label": False,
            "texts": ("a film", "two\nlines", "<b>", "🎬 film"),
            "pairs": None,
            "truth": np.array([0, 2, 1, 2]),
            "student": random.normal(size=(4, 3)).astype(np.float32),
            "teacher": random.normal(size=(4, 3)).astype(np.float32),
            **changes,
        }
    )


SEVERAL = {"multi_label": True, "truth": np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])}


@pytest.mark.parametrize(
    "changes", [{}, {"teacher": None}, {"pairs": ("a", "b", "", "d")}, SEVERAL]
)
def test_what_is_written_is_read(tmp_path, changes):
    given = made(**changes)
    write_predictions(tmp_path / "x.parquet", given)
    found = read_predictions(tmp_path / "x.parquet")
    for name, value in vars(given).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(found, name), value), name
            assert getattr(found, name).dtype == value.dtype
        else:
            assert getattr(found, name) == value, name
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_the_file_is_plain_to_other_readers(tmp_path):
    import pandas as pd

    write_predictions(tmp_path / "x.parquet", made())
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(frame) == ["text", "label", "student", "teacher"]
    assert frame["label"].tolist() == ["bad", "good", "so-so", "good"]


def test_figures_are_those_of_sklearn():
    one = made()
    chosen = one.student.argmax(axis=1)
    assert one.accuracy(one.student) == accuracy_score(one.truth, chosen)
    wanted = f1_score(one.truth, chosen, average="macro")
    assert one.f1(one.student) == pytest.approx(wanted)
    several = made(**SEVERAL)
    assert several.accuracy(several.student) == np.mean((several.student > 0) == several.truth)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"none\.parquet is not there: the run was cut off"):
        read_predictions(tmp_path / "none.parquet")
    path = tmp_path / "x.parquet"
    write_predictions(path, made())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"x\.parquet cannot be read"):
        read_predictions(path)


def test_a_label_outside_of_the_classes_is_no_label(tmp_path):
    write_predictions(tmp_path / "x.parquet", made())
    import pyarrow.parquet as parquet

    table = parquet.read_table(tmp_path / "x.parquet")
    place = table.column_names.index("label")
    table = table.set_column(place, "label", [["bad", "worse", "good", "good"]])
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(RunError, match="cannot be read"):
        read_predictions(tmp_path / "x.parquet")
    assert len(replace(made(), texts=("a",))) == 1
