import os

import pytest

from kd.answers import Held, held, list_answers, prune_answers
from kd.runs import answers_folder
from kd.shards import ANSWERS, add_facts


@pytest.fixture
def root(tmp_path):
    """Answers of three teachers; of one it is not known where it was read from."""
    for name, used in (("a", 300.0), ("b", 100.0), ("c", 200.0)):
        folder = answers_folder(str(tmp_path)) / name
        folder.mkdir(parents=True)
        file = folder / ANSWERS.replace("*", name)
        file.write_bytes(b"12345")
        os.utime(file, (used, used))
        if name != "c":
            add_facts(folder, {"teacher": f"runs/{name}"})
    return tmp_path


def test_held_are_listed_the_longest_unused_first(root, capsys):
    found = held(str(root))
    assert [(one.path.name, one.teacher, one.used) for one in found] == [
        ("b", "runs/b", 100.0),
        ("c", "unknown", 200.0),
        ("a", "runs/a", 300.0),
    ]
    size = sum(file.stat().st_size for file in found[0].path.iterdir())
    assert found[0] == Held(answers_folder(str(root)) / "b", "runs/b", size, 100.0)
    list_answers(str(root))
    printed = capsys.readouterr().out
    assert printed.index("runs/b") < printed.index("unknown") < printed.index("runs/a")


def test_what_is_pruned_is_held_no_more(root):
    prune_answers(str(root), key="b")
    assert [one.path.name for one in held(str(root))] == ["c", "a"]
    prune_answers(str(root))
    assert held(str(root)) == []
