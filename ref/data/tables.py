"""Tables in files: CSV with any separator, MovieLens' "::", JSON lines; plain or `.gz`.

Every error is a ValueError that names the file and the line, and says what is wrong.
"""

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ref.data.columns import KNOWN_NAMES
from ref.files import naming, object_without_repeated_keys

SEPARATORS = (",", "\t", ";", "|")  # of a .csv or .txt file: the one that its header holds most
UNQUOTED = (".inter", ".item")  # RecBole's files: tabs, and a quote is a letter as any other


@dataclass
class Place:
    """Where a table is being read: "PATH, line N" as text, made only where an error needs it."""

    path: Path
    line: int = 1  # the last that could be read

    def __str__(self):
        return f"{self.path}, line {self.line}"


class Table(NamedTuple):
    """header: the names of the columns. rows: yields [value of each column]. place: of that row.

    columns_read: who reads the rows puts the indices of columns in here, which have to hold texts
    or numbers then; JSON can hold other things.
    """

    path: Path
    header: list
    rows: object
    place: Place
    columns_read: list

    def index_of(self, name):
        """The index of a column, None if it is not there; letter case does not matter.

        Raises ValueError where it stands twice.
        """
        lower = [column.lower() for column in self.header]
        if lower.count(name.lower()) > 1:
            raise ValueError(f"{self.path}: column {name!r} stands twice")
        return lower.index(name.lower()) if name.lower() in lower else None


@contextmanager
def opened(path, header=None):
    """The Table in a file, open while the block runs. header: for files that have none.

    Blank lines are passed over, and what RecBole adds to names ("user_id:token") is cut off.
    """
    place = Place(path)
    try:
        with naming(path), open(path, "rb") as file:
            unpacked = _BoundedGzip(fileobj=file) if path.suffix == ".gz" else file
            yield _table(unpacked, header, place)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8, after line {place.line}") from None
    except csv.Error as error:
        raise ValueError(f"{path}: broken CSV after line {place.line}: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip: {error}") from None


def plain_or_gz(folder, name):
    """FOLDER/name or FOLDER/name.gz, or None if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def suffix_of(path):
    """ ".csv" of "a.csv" and of "a.csv.gz"."""
    return Path(path.name.removesuffix(".gz")).suffix


def _table(file, header, place):
    suffix = suffix_of(place.path)
    encoding = _encoding_of_movielens(file) if suffix == ".dat" else "utf-8-sig"
    text = io.TextIOWrapper(file, encoding, newline="")
    if suffix in (".jsonl", ".json"):
        return _json_lines(text, place)
    records = _records(text, suffix, place)
    if header is None:
        first = next((record for record in records if not _is_blank(record)), None)
        if first is None:
            raise ValueError(f"{place.path}: is empty; expected the names of columns, then rows")
        header = [name.split(":")[0].strip() for name in first]
    return Table(place.path, header, _checked(records, header, place), place, [])


def _encoding_of_movielens(file):
    """MovieLens 10M is in UTF-8, what came before is in Latin-1, where every byte is a letter."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read1(1 << 20):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
        return "utf-8-sig"
    except UnicodeDecodeError:
        return "latin-1"
    finally:
        file.seek(0)


def _records(text, suffix, place):
    """Yield the fields of each record; `place` is the line where it ends."""
    if suffix == ".dat":
        for place.line, content in enumerate(text, start=1):
            if content.strip():
                yield content.rstrip("\r\n").split("::")
        return
    lines = _lines_to_header(text)
    tabs = suffix == ".tsv" or suffix in UNQUOTED
    separator = "\t" if tabs else max(SEPARATORS, key=lines[-1].count)
    quoting = csv.QUOTE_NONE if suffix in UNQUOTED else csv.QUOTE_MINIMAL
    reader = csv.reader(chain(lines, text), delimiter=separator, quoting=quoting, strict=True)
    for record in reader:
        place.line = reader.line_num
        if record:
            yield record


def _lines_to_header(text):
    """The first line that is not blank, and the blank ones before it, which count as lines."""
    lines = [text.readline()]
    while lines[-1] and not lines[-1].strip():  # at the end of the file stands ""
        lines.append(text.readline())
    return lines


def _is_blank(record):
    """Is it a line of nothing but spaces?"""
    return len(record) == 1 and not record[0].strip()


def _checked(records, header, place):
    """Yield each record that is not blank; its fields are as many as the header's."""
    num_columns = len(header)
    for record in records:
        if len(record) == num_columns:
            yield record
        elif not _is_blank(record):
            raise ValueError(f"{place}: {len(record)} fields; the header has {num_columns}")


def _json_lines(text, place):
    """The Table of a file with a JSON object a line; the first has all columns."""
    objects = _json_objects(text, place)
    first = next(objects, None)
    if first is None:
        raise ValueError(f"{place.path}: is empty; expected a JSON object a line")
    header = list(first)
    columns_read = []

    def rows():
        for values in chain([first], objects):
            _refuse_new_columns(values, first, place)
            for index in columns_read:
                _refuse_what_is_no_text(values.get(header[index]), header[index], place)
            yield [_as_text(values.get(name)) for name in header]

    return Table(place.path, header, rows(), place, columns_read)


def _refuse_new_columns(values, first, place):
    """Raise ValueError where an object has a column of a known name that the first lacks.

    Whether the column is read is not known yet.
    """
    for name in values.keys() - first.keys():
        if name.lower() in KNOWN_NAMES:
            raise ValueError(
                f"{place}: has {name!r}, which the first line lacks; expected it there, too, null "
                "where it has no value"
            )


def _refuse_what_is_no_text(value, name, place):
    if isinstance(value, list | dict | bool):
        raise ValueError(f"{place}: {name} is {str(value)[:80]}; expected text or a number")


def _json_objects(text, place):
    for place.line, content in enumerate(text, start=1):
        if not content.strip():
            continue
        if content.lstrip().startswith("["):
            raise ValueError(
                f"{place}: a JSON array; expected an object a line; convert it: jq -c '.[]' FILE"
            )
        try:
            values = json.loads(content, object_pairs_hook=object_without_repeated_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: broken JSON: {error}; expected an object a line") from None
        if not isinstance(values, dict):
            raise ValueError(f"{place}: {content[:40]!r}; expected a JSON object a line")
        yield values


def _as_text(value):
    """A value of JSON as it would stand in a CSV file; null is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


class _BoundedGzip(gzip.GzipFile):
    """A .gz file that is no bomb: unpacked at most 50 times as large, or 16 MiB; tables have 10."""

    def read1(self, size=-1):
        """Some bytes, as of any file. Raises gzip.BadGzipFile where they have become too many."""
        if self.tell() > max(1 << 24, 50 * os.fstat(self.fileno()).st_size):
            raise gzip.BadGzipFile("what it holds is more than 50 times as large")
        return super().read1(size)
