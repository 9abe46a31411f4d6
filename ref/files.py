"""Reading and writing files so that a failure is one clear line and never half a file."""

import json
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def uninterrupted():
    """Hold Ctrl-C back until the block is done. For the main thread, which alone receives it."""
    signals = []

    def remember(number, frame):
        signals.append(number)

    handler = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if signals:
        raise KeyboardInterrupt


@contextmanager
def replacing(path):
    """Give the path of a new file to write to, which replaces `path` at the end of the block.

    It is flushed to disk and then renamed: a reader sees the old file or the new one, and never a
    part of either. After an error the old file is still there, and the new one is not.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with uninterrupted():
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
        os.close(handle)
        try:
            yield name
            with open(name, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp lets nobody else read it
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_atomically(path, data):
    """Write bytes so that no reader ever sees half of them."""
    with replacing(path) as part:
        Path(part).write_bytes(data)


def write_json(path, value):
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def read_text(path) -> str:
    """The text of a UTF-8 file. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def read_json(path, kind=dict):
    """The value in a JSON file, which must be of type `kind`. Raises as read_text does."""
    return parse_json(read_text(path), path, kind)


def parse_json(text, source, kind=dict):
    """The value of a JSON text. Raises ValueError naming `source` if it is broken or no `kind`."""
    try:
        value = json.loads(text, object_pairs_hook=_object_without_repeated_keys)
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise ValueError(f"{source}: broken JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{source}: holds a JSON {type(value).__name__}; expected {kind.__name__}")
    return value


def _object_without_repeated_keys(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError("a key stands twice: " + repr(keys)[:200])
    return values
