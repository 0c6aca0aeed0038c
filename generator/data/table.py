# SPDX-License-Identifier: Apache-2.0
"""CSV tables: a header, a column with the class, numbers in the others.

Errors are ``file:row:column``: the line in the file and the number of its field, both from 1.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import files
from sparcl_mcu.generator.config import MAX_VALUES, Config, DataSection
from sparcl_mcu.generator.data import series
from sparcl_mcu.generator.data.raw import LARGEST, Labels, Raw, Samples, check_classes, natural
from sparcl_mcu.generator.data.series import Recording
from sparcl_mcu.generator.data.tasks import held_out
from sparcl_mcu.generator.sizes import LARGEST_LINE, LARGEST_TABLE, MOST_ROWS, shown
from sparcl_mcu.spec.errors import UserError

MOST_COLUMNS = MAX_VALUES + 3
"""The values of a sample and what they are of."""


@dataclass(frozen=True)
class Table:
    """``x``: (rows, columns) float64; ``lines``: (rows,) where each row ends in the file; ``texts``: for label,
    group and recording, as far as there are such columns, their text in each row.
    """

    path: Path
    header: tuple[str, ...]
    columns: tuple[str, ...]
    x: NDArray[np.float64]
    lines: Sequence[int]
    texts: dict[str, tuple[str, ...]]

    def place(self, row: int, column: str) -> str:
        """``file:row:column`` of a value."""
        return f"{self.path}:{self.lines[row]}:{self.header.index(column) + 1}"


def load(config: Config) -> Raw:
    """The tables of ``data.path`` and ``data.test_path``.

    A row is a sample, or a time step if there is a ``window``: (n, columns) or (n, *window) float64.
    """
    data = config.data
    train = read(cast(Path, data.path), data, data.columns)
    tables = [train]
    if data.test_path is not None:
        tables.append(read(data.test_path, data, train.columns))
    names = natural(train.texts["label"])
    check_classes(f"{train.path}: column {data.label}", names, config)
    known = set(names)
    for table in tables[1:]:
        for row, text in enumerate(table.texts["label"]):
            if text not in known:
                raise UserError(f'{table.place(row, data.label)}: class "{text}" is not in {train.path}')
    grouped = config.tasks.by == "group"
    groups = natural(text for table in tables for text in table.texts["group"]) if grouped else ()
    if data.window is not None:
        return _series(data, tables, names, groups)
    parts = [Samples(table.x, _labels(table, names), _groups(table, groups)) for table in tables]
    raw = Raw(train.path.stem, str(train.path), names, parts[0], parts[-1], groups)
    return raw if len(parts) == 2 else held_out(config, raw)


def read(path: Path, data: DataSection, columns: Sequence[str] | None) -> Table:
    """A table; ``columns``: those the network sees, None for all that have no other role."""
    rows = _rows(path)
    top, header = next(rows)
    _check_header(path, top, header)
    roles = {"label": data.label, "group": data.group, "recording": data.recording}
    texts = {role: _column(path, top, header, name, f"data.{role}") for role, name in roles.items() if name is not None}
    if columns is None:
        numbers = [k for k in range(len(header)) if k not in texts.values()]
        unnamed = [k for k in numbers if not header[k]]
        if unnamed:
            raise UserError(
                f"{path}:{top}:{unnamed[0] + 1}: a column without a name (the number of the row?); "
                "name it, or list the columns the network sees in data.columns"
            )
    else:
        option = "data.columns" if data.columns is not None else f"as in {data.path}"
        place = {name: k for k, name in enumerate(header)}
        numbers = [place[n] if n in place else _column(path, top, header, n, option) for n in columns]
    if not numbers:
        raise UserError(f"{path}:{top}: no column of numbers beside {', '.join(header)}")
    # Packed, because a list of numbers takes four times as much; each label is stored as one string.
    lines, x, found = array("q"), array("d"), [list[str]() for _ in texts]
    for line, fields in rows:
        if len(fields) != len(header):
            raise UserError(f"{path}:{line}: {len(fields)} fields, but the header has {len(header)}")
        x.extend(_numbers(path, line, fields, header, numbers))
        for column, k in zip(found, texts.values(), strict=True):
            column.append(sys.intern(_text(path, line, fields, header, k)))
        lines.append(line)
    if not lines:
        raise UserError(f"{path}: has a header, but no rows")
    values = np.frombuffer(x, dtype=np.float64).reshape(len(lines), len(numbers))
    columns_of_text = dict(zip(texts, map(tuple, found), strict=True))
    return Table(path, header, tuple(header[k] for k in numbers), values, lines, columns_of_text)


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, fields) of each row that is not blank; commas, semicolons or tabs, whichever the header has."""
    try:
        with files.opened(path, LARGEST_TABLE) as file:
            yield from _parsed(path, _lines(path, file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such data file (data.path, data.test_path)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """The lines of a file with their ends, one at a time: the whole text would take many times its size."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        for number in itertools.count(1):
            line = text.readline(LARGEST_LINE + 1)
            if not line:
                return
            if len(line) > LARGEST_LINE:
                raise UserError(f"{path}:{number}: a line has more than {shown(LARGEST_LINE)}: is this a table?")
            if number > MOST_ROWS:
                raise UserError(f"{path}:{number}: more than {MOST_ROWS:,} lines; make the table smaller")
            yield line
    except UnicodeDecodeError:
        raise UserError(f"{path}{_undecodable(file)}: save it as UTF-8") from None


def _undecodable(file: BinaryIO) -> str:
    """Where the first byte is that is not UTF-8."""
    file.seek(0)
    for number in itertools.count(1):
        line = file.readline(LARGEST_LINE)
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return f":{number}: not UTF-8 text (byte {error.start + 1} of the row)"
        if not line:
            break
    return ": not UTF-8 text"


def _parsed(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, fields) of each row that is not blank."""
    blank = []
    for first in lines:
        blank.append(first)
        if first.strip():
            break
    else:
        raise UserError(f"{path}: is empty")
    header = re.sub(r'"[^"]*"', "", first)
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(itertools.chain(blank, lines), delimiter=delimiter, strict=True, skipinitialspace=True)
    begin = 1
    try:
        for fields in reader:
            begin = reader.line_num + 1
            if any(field.strip() for field in fields):
                yield reader.line_num, tuple(field.strip() for field in fields)
            elif len(fields) > 1:
                yield reader.line_num, tuple(fields)
    except csv.Error as error:
        # A quote that is never closed swallows the rest of the file.
        hint = " in a row that begins here: is a quote not closed?" if reader.line_num > begin else ""
        raise UserError(f"{path}:{begin}: not CSV ({error}{hint})") from None


def _check_header(path: Path, line: int, header: Sequence[str]) -> None:
    if all(_number(name) is not None for name in header):
        raise UserError(f"{path}:{line}: the first row has numbers only; it has to name the columns")
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{path}:{line}: {len(header):,} columns; at most {MOST_COLUMNS:,} are possible")
    known: set[str] = set()
    for k, name in enumerate(header):
        if name and name in known:
            raise UserError(f"{path}:{line}:{k + 1}: column {name} is there twice")
        known.add(name)


def _column(path: Path, line: int, header: Sequence[str], name: str, option: str) -> int:
    if name not in header:
        there = f"there are {', '.join(header)}"
        if len(header) == 1:
            there = f'there is only "{header[0]}": commas, semicolons or tabs have to stand between columns'
        raise UserError(f'{path}:{line}: no column "{name}" ({option}); {there}')
    return header.index(name)


def _number(text: str) -> float | None:
    """A number as other programs write it; Python alone knows 1_000."""
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _numbers(path: Path, line: int, fields: Sequence[str], header: Sequence[str], where: Sequence[int]) -> list[float]:
    result = []
    for k in where:
        value = _number(fields[k])
        if value is None or not abs(value) <= LARGEST:
            raise UserError(f"{path}:{line}:{k + 1}: {_no_number(fields[k], value)} (column {header[k]})")
        result.append(value)
    return result


def _no_number(text: str, value: float | None) -> str:
    if not text:
        return "a value is missing"
    if value is None:
        return f'"{text}" is not a number' + (": decimals need a point" if re.fullmatch(r"-?\d+,\d+", text) else "")
    return f"{text} is " + ("too large" if math.isfinite(value) else "not a finite number")


def _text(path: Path, line: int, fields: Sequence[str], header: Sequence[str], k: int) -> str:
    if not fields[k]:
        raise UserError(f"{path}:{line}:{k + 1}: a value is missing (column {header[k]})")
    return fields[k]


def _labels(table: Table, names: Sequence[str]) -> Labels:
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[text] for text in table.texts["label"]], dtype=np.int64)


def _groups(table: Table, names: Sequence[str]) -> Labels:
    if not names:
        return np.zeros(len(table.lines), dtype=np.int64)
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[text] for text in table.texts["group"]], dtype=np.int64)


def _series(data: DataSection, tables: Sequence[Table], names: tuple[str, ...], groups: tuple[str, ...]) -> Raw:
    """Windows of the tables' rows."""
    stretches = [_recordings(table, names, groups) for table in tables]
    source = str(tables[0].path)
    if len(tables) == 2:
        train = series.gather(data, stretches[0], source)
        test = series.gather(data, stretches[1], str(tables[1].path))
    else:
        train, test = series.gather_apart(data, stretches[0], source)
    train, test = (Samples(series.see(data, part.x), part.y, part.group) for part in (train, test))
    return Raw(tables[0].path.stem, source, names, train, test, groups)


def _recordings(table: Table, names: Sequence[str], groups: Sequence[str]) -> list[Recording]:
    """Stretches of rows with the same recording, label and group: no window reaches beyond one."""
    y, group = _labels(table, names), _groups(table, groups)
    key = list(zip(*table.texts.values(), strict=True))
    change = [k for k in range(1, len(key)) if key[k] != key[k - 1]]
    borders = [0, *change, len(key)]
    return [Recording(table.x[a:b], int(y[a]), int(group[a])) for a, b in itertools.pairwise(borders)]
