"""Reading and writing files so that a failure is one clear line and never half a file."""

import json
import os
import tempfile
from pathlib import Path


def write_atomically(path, data):
    """Write bytes beside `path`, flush them to disk, then rename: readers see the old file or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def read_text(path):
    """The text of a UTF-8 file. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def read_json(path, kind=dict):
    """The value in a JSON file, checked to be of `kind`. Raises as read_text does."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: holds a JSON {type(value).__name__}; expected {kind.__name__}")
    return value


def write_json(path, value):
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
