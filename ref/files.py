"""Reading and writing files so that a failure is one clear line and never half a file."""

import json
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def uninterrupted():
    """Hold Ctrl-C back until the block is done (in the main thread, which alone receives it)."""
    held = []
    handler = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        raise KeyboardInterrupt


@contextmanager
def replacing(path):
    """Give a path beside `path` to write to; flush it to disk, then rename: readers see the old file or the new.

    Of several processes (torchrun), the first alone writes.
    """
    if os.environ.get("RANK", "0") != "0":
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / "file"
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with uninterrupted():
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
        os.close(handle)
        try:
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def write_atomically(path, data):
    """Write bytes so that no reader ever sees half of them."""
    with replacing(path) as beside:
        Path(beside).write_bytes(data)


def read_text(path):
    """The text of a UTF-8 file. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def _object(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice: " + repr([key for key, _ in pairs])[:200])
    return dict(pairs)


def read_json(path, kind=dict):
    """The value in a JSON file, checked to be of `kind`. Raises as read_text does."""
    return parse_json(read_text(path), path, kind)


def parse_json(text, source, kind=dict):
    """The value of a JSON text, checked to be of `kind`; ValueError naming `source`."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise ValueError(f"{source}: broken JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{source}: holds a JSON {type(value).__name__}; expected {kind.__name__}")
    return value


def write_json(path, value):
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
