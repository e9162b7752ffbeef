"""From a source to raw tables: files, folders, hub data sets and the built-in corpus.

A table keeps every cell as its source spells it; what a text or a label is, ``kd.data.rows``
knows. Nothing that comes from a hub is executed.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO, cast

from kd.data.rows import Table
from kd.errors import ConfigError, DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow

__all__ = ["ROLES", "Source", "available_roles", "read"]

ROLES = ("train", "validation", "test", "unlabelled", "predict")
"""What a table can be read for; also the fields of :class:`Source` that name it."""

_SPELLINGS = {role: (role,) for role in ROLES} | {"validation": ("validation", "valid", "dev")}
_SPLIT_NAMES = {name for names in _SPELLINGS.values() for name in names}
_SHARD = re.compile(r"-\d+-of-\d+$")
_Splits = dict[str, Callable[[], Table]]


@dataclass
class Source:
    """Where the rows come from: files, a folder, a data set of the hub, or the built-in corpus.

    Args:
        path: Hub id such as cardiffnlp/tweet_eval, a local folder, or sample (the built-in corpus;
            also used when both path and train are null). Null: the roles below name files.
        name: Configuration of a hub data set, such as sentiment.
        revision: Branch, tag or commit of a hub data set.
        train: Files, globs or folders; with a path, split names such as train or train[:10%]. Null
            with a path: the split with the role's own name, if there is one.
        validation: As train; valid and dev are found too.
        test: As train.
        unlabelled: As train; never taken from the built-in corpus unless named.
        predict: As train; the rows that predict answers.
        encoding: Encoding of text files; old ones are often latin-1.
        header: Whether the first line of a CSV file names the columns.
        columns: Column names of a CSV file without a header; null numbers them from 0.
        delimiter: Character between two fields; null is a comma, or a tab in .tsv files.
        quotes: Whether double quotes enclose CSV fields; false reads them as any character.
    """

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    unlabelled: str | list[str] | None = None
    predict: str | list[str] | None = None
    encoding: str = "utf-8"
    header: bool = True
    columns: list[str] | None = None
    delimiter: str | None = None
    quotes: bool = True


def available_roles(source: Source) -> tuple[str, ...]:
    """Return the roles that :func:`read` can answer, in the order of :data:`ROLES`."""
    splits = _splits(source)
    return tuple(role for role in ROLES if _wanted(source, role, splits))


def read(source: Source, role: str) -> Table:
    """Read all rows of one role, from one or several files or splits.

    Args:
        source: Where the rows come from.
        role: One of :data:`ROLES`.

    Returns:
        At least one row.

    Raises:
        DataError: If there is no such file or split, or it cannot be read.
    """
    splits = _splits(source)
    wanted = _wanted(source, role, splits)
    if splits is None:
        if not wanted:
            raise DataError(f"There is no {role} data: set data.source.{role} to a file.")
        return _read_files([file for entry in wanted for file in _files(entry, role)], source)
    tables = []
    for piece in wanted or [role]:
        if piece.partition("[")[0] not in splits:
            raise DataError(
                f"{source.path or 'sample'} has no split {piece!r}: set data.source.{role} to one "
                f"of: {', '.join(splits)}."
            )
        tables.append(_read_split(piece, role, splits))
    return _joined(tables)


def _wanted(source: Source, role: str, splits: _Splits | None) -> list[str]:
    """Return the files or splits of a role; none where it is not available."""
    value: str | list[str] | None = getattr(source, role)
    if value is not None:
        return [value] if isinstance(value, str) else list(value)
    if splits is None or (role == "unlabelled" and _is_sample(source)):
        return []
    return [name for name in _SPELLINGS[role] if name in splits][:1]


def _is_sample(source: Source) -> bool:
    """Tell whether the built-in corpus is meant; files for test or predict alone stay files."""
    if source.path is not None or source.train is not None:
        return source.path == "sample"
    from kd.data.sample import SPLITS

    return {n.partition("[")[0] for role in ROLES for n in _wanted(source, role, None)} <= {*SPLITS}


def _splits(source: Source) -> _Splits | None:
    """Return a reader for each split of the source, or null where the roles name files."""
    if _is_sample(source):
        from kd.data.sample import SPLITS

        return {name: partial(_read_sample, name) for name in SPLITS}
    if source.path is None:
        return None
    folder = Path(source.path).expanduser()
    if os.path.isdir(folder):
        return _folder_splits(folder, source)
    if os.path.isfile(folder) or re.search("^[.~/]|/.*/", source.path):
        raise DataError(
            f"data.source.path={source.path} is no folder: files are named in data.source.train."
        )
    return _dataset_splits(_load(source.path, source.name, source.revision), source)


def _folder_splits(folder: Path, source: Source) -> _Splits:
    """Find files named after splits; any other folder is for ``datasets`` to understand."""
    files: dict[str, list[Path]] = {}
    for path in [*_data_files(folder), *_data_files(folder / "data")]:
        files.setdefault(_split_name(path), []).append(path)
    if source.name is None and not _SPLIT_NAMES.isdisjoint(files):
        return {name: partial(_read_files, paths, source) for name, paths in files.items()}
    return _dataset_splits(_load.__wrapped__(str(folder), source.name, None), source)


@lru_cache(maxsize=4)
def _load(path: str, name: str | None, revision: str | None) -> Mapping[str, datasets.Dataset]:
    """Load all splits with ``datasets``, which prepares all of them anyway."""
    import datasets

    try:
        if (Path(path) / "dataset_dict.json").exists():  # written by save_to_disk
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, name, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        hidden = isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__
        reason = " ".join(str(hidden or error).partition("\nExample")[0].split()).rstrip(".")
        raise DataError(
            f"Cannot load data.source.path={path} (name={name}, revision={revision}): {reason}: "
            "check these three keys, and the network (HF_HUB_OFFLINE=1 shuts it off)."
        ) from error
    return cast("Mapping[str, datasets.Dataset]", loaded)


def _dataset_splits(loaded: Mapping[str, datasets.Dataset], source: Source) -> _Splits:
    name = source.path if source.name is None else f"{source.path} ({source.name})"

    def reader(split: str) -> Table:
        return _arrow_table(loaded[split].with_format("arrow")[:], f"{name}, split {split}")

    return {split: partial(reader, split) for split in loaded}


def _read_sample(split: str) -> Table:
    from kd.data.explained import columns
    from kd.data.sample import LABELS

    return _table(columns(split), f"sample, split {split}", None, {"label": LABELS})


def _read_split(piece: str, role: str, splits: _Splits) -> Table:
    """Read one split or, as Hugging Face spells it, a slice of one such as ``train[:10%]``."""
    name = piece.partition("[")[0]
    table = splits[name]()
    if name == piece:
        return table
    from datasets import ReadInstruction

    try:
        bounds = ReadInstruction.from_spec(piece).to_absolute({name: len(table.frame)})[0]
    except (ValueError, AssertionError) as error:
        raise DataError(f"data.source.{role}={piece} is no slice such as {name}[:10%].") from error
    numbers = range(bounds.from_ + 1, bounds.to + 1)
    if not numbers:
        raise DataError(f"data.source.{role}={piece} is none of {len(table.frame):,} rows.")
    frame = table.frame.iloc[bounds.from_ : bounds.to].reset_index(drop=True)
    return replace(table, frame=frame, numbers=numbers, unit="row", parts=())


def _files(entry: str, role: str) -> list[Path]:
    """Return the files of one entry of a role: a file, a folder's data files or a glob's hits."""
    path = Path(entry).expanduser()
    if os.path.isfile(path):
        return [path]
    found = _data_files(path) if os.path.isdir(path) else sorted(map(Path, glob.glob(str(path))))
    if not found:
        raise DataError(f"data.source.{role}: no data file is at {entry} (seen from {Path.cwd()}).")
    return found


def _data_files(folder: Path) -> list[Path]:
    """List the data files of a folder; .json only where a split is its name, not metadata."""
    files = [path for path in sorted(folder.glob("[!._]*")) if _extension(path) in _READERS]
    return [f for f in files if _extension(f) != ".json" or _split_name(f) in _SPLIT_NAMES]


def _extension(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _split_name(path: Path) -> str:
    return _SHARD.sub("", Path(path.name.removesuffix(".gz")).stem)


def _read_files(paths: Iterable[Path], source: Source) -> Table:
    return _joined([_read_file(path, source) for path in paths])


def _joined(tables: list[Table]) -> Table:
    """Put tables under each other; a column that one of them lacks is empty there."""
    if len(tables) == 1:
        return tables[0]
    from pandas import concat

    return Table(
        frame=concat([table.frame for table in tables], ignore_index=True),
        origin=" + ".join(table.origin for table in tables[:3]) + " ..." * (len(tables) > 3),
        label_names={key: names for table in tables for key, names in table.label_names.items()},
        parts=tuple(tables),
    )


def _read_file(path: Path, source: Source) -> Table:
    """Read a file by its extension, and say in one sentence why it cannot be read."""
    if _extension(path) not in _READERS:
        raise DataError(f"{path}: unknown extension; known are {', '.join(_READERS)}, also .gz.")
    try:
        return _READERS[_extension(path)](path, source)
    except UnicodeDecodeError as error:
        advice = "set its own, for example data.source.encoding=latin-1"
        raise DataError(f"{path} is not in {source.encoding}: {advice}.") from error
    except LookupError as error:
        raise ConfigError(f"data.source.encoding={source.encoding} is unknown.") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _text(path: Path, source: Source) -> TextIO:
    """Open a text file, unless its first bytes are not text in any one-byte encoding."""
    encoding = codecs.lookup(source.encoding).name
    b" ".decode(encoding, "ignore")  # a codec of bytes, such as base64, is no encoding
    with _open(path) as file:
        head = file.read(8192)
    control = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
    if control > len(head) / 20 and not encoding.startswith(("utf-16", "utf-32")):
        raise DataError(f"{path} looks binary: is it text (data.source.encoding=utf-16)?")
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding  # spreadsheets begin with a BOM
    return io.TextIOWrapper(_open(path), encoding=encoding, newline="")


def _read_csv(path: Path, source: Source) -> Table:
    names = source.columns
    if source.header and names is not None:
        raise ConfigError("data.source.columns needs data.source.header=false.")
    records: list[list[str]] = []
    numbers = array("q")
    with _text(path, source) as file:
        for number, record in _records(file, path, source):
            if names is None:
                names = record if source.header else [str(i) for i in range(len(record))]
                if source.header:
                    continue
            if len(record) != len(names):
                wrong = f"{len(record)} fields instead of {len(names)}: is a quote missing?"
                raise DataError(f"{path}, line {number}: {wrong}")
            records.append(record)
            numbers.append(number)
    names = names or []
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have one name: {', '.join(names)}.")
    columns = {name: [record[i] for record in records] for i, name in enumerate(names)}
    return _table(columns, str(path), numbers)


def _records(file: TextIO, path: Path, source: Source) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the number of its first line."""
    delimiter = source.delimiter or ("\t" if _extension(path) == ".tsv" else ",")
    if len(delimiter) != 1:
        raise ConfigError(f"data.source.delimiter={delimiter!r} is not one character.")
    csv.field_size_limit(2**31 - 1)  # the default refuses texts beyond 131,072 characters
    # strict: else an unclosed quote silently swallows the rows up to the next one
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if source.quotes else csv.QUOTE_NONE
    reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
    first = 1
    try:
        for record in reader:
            if record:
                yield first, record
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {first}: broken or unclosed quote ({error}): write a quote inside a "
            "quoted field twice, or set data.source.quotes=false."
        ) from error


def _read_json(path: Path, source: Source) -> Table:
    """Read one object per line or, in a .json file, one list of objects."""
    with _text(path, source) as file:
        content = file.read()
    listed = _extension(path) == ".json" and content.lstrip().startswith("[")
    rows: list[dict[str, Any]] = []
    numbers = array("q")
    for number, line in enumerate([content] if listed else content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line) if listed else [json.loads(line)]
            if not all(isinstance(row, dict) for row in found):
                raise ValueError('a row is an object, {"text": ...}')
        except (ValueError, RecursionError) as error:
            at = number + getattr(error, "lineno", 1) - 1
            raise DataError(f"{path}, line {at}: {getattr(error, 'msg', error)}.") from error
        rows += found
        numbers.extend([number] * len(found))
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return _table(columns, str(path), None if listed else numbers)


def _read_parquet(path: Path, source: Source) -> Table:
    from pyarrow import parquet

    return _arrow_table(parquet.read_table(path), str(path))


def _arrow_table(table: pyarrow.Table, origin: str) -> Table:
    """Turn Arrow columns into Python values, and find the class names ``datasets`` noted there."""
    noted = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features: dict[str, Any] = noted.get("info", {}).get("features", {})
    kinds = {name: kind.get("feature", kind) for name, kind in features.items()}  # a list's items
    label_names = {name: tuple(kind["names"]) for name, kind in kinds.items() if "names" in kind}
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return _table(columns, origin, None, label_names)


_READERS: dict[str, Callable[[Path, Source], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _table(
    columns: Mapping[str, Sequence[Any]],
    origin: str,
    lines: Sequence[int] | None,
    label_names: Mapping[str, tuple[str, ...]] | None = None,
) -> Table:
    from pandas import DataFrame

    # dtype object: pandas would make floats of whole numbers with a hole, and refuse surrogates.
    frame = DataFrame(dict(columns), dtype=object)
    if frame.empty:
        raise DataError(f"{origin} holds no rows.")
    return Table(frame, origin, lines, "row" if lines is None else "line", label_names or {})
