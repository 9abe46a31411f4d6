"""Reading and writing files so that a failure is one clear line and never half a file."""

import json
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

# What JSON calls the types of Python.
_JSON_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


@contextmanager
def uninterrupted():
    """Hold Ctrl-C back until the block is done. For the main thread, which alone receives it.

    Of blocks inside each other, the outermost one counts: at its end Ctrl-C interrupts, once.
    """
    signals = []

    def remember(number, frame):
        signals.append(number)

    handler = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if signals:
            signal.raise_signal(signal.SIGINT)  # an outer block remembers it


@contextmanager
def naming(path):
    """Add the name of the file to an OSError that lacks it, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path):
    """Give the path of a new file to write to, which replaces `path` at the end of the block.

    It is flushed to disk and then renamed: a reader sees the old file or the new one, and never a
    part of either. After an error the old file is still there, and the new one is not. What is no
    regular file (a pipe, a device, a link such as /dev/stdout) is written to where it is.
    """
    path = Path(path)
    if _is_written_in_place(path):
        with naming(path):
            yield str(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with uninterrupted(), naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
        os.close(handle)
        try:
            yield name
            with open(name, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp lets nobody else read it
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _is_written_in_place(path):
    """Is there a pipe, a device or a link, which a new file must not replace?"""
    return path.exists() and (path.is_symlink() or not path.is_file())


def _umask():
    """The permissions that new files do not get. It cannot be read without being set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def check_writable(path):
    """Raise ValueError if `replacing` could not write `path`; what stands there stays.

    Makes the folders that are missing.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; expected the name of a file")
    if _is_written_in_place(path):
        return  # to try it would be to write
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None


def write_atomically(path, data):
    """Write bytes so that no reader ever sees half of them."""
    with replacing(path) as part:
        Path(part).write_bytes(data)


def write_json(path, value):
    """Write a value as indented JSON, atomically. Raises ValueError for NaN and infinity in it."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path}: cannot be written: {error}") from None
    # half a surrogate pair, as in the name of a file that is not UTF-8, is escaped as JSON does it
    write_atomically(path, text.encode(errors="backslashreplace"))


@contextmanager
def opened(path):
    """Open a file to read bytes. Raises OSError naming the file.

    What is no regular file is refused: reading a pipe or a device might never end.
    """
    path = Path(path)
    if not path.is_file():
        reason = "is no regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{path}: {reason}")
    with naming(path), open(path, "rb") as file:
        yield file


def read_bytes(path) -> bytes:
    """What a file holds. Raises OSError naming the file, as `opened` does."""
    with opened(path) as file:
        return file.read()


def read_text(path) -> str:
    """The text of a UTF-8 file. Raises OSError or ValueError naming the file."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def read_json(path, kind=dict):
    """The value in a JSON file, which must be of type `kind`. Raises as read_text does."""
    return parse_json(read_text(path), path, kind)


def parse_json(text, source, kind=dict):
    """The value of a JSON text. Raises ValueError naming `source` if it is broken or no `kind`."""
    try:
        value = json.loads(text, object_pairs_hook=object_without_repeated_keys)
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise ValueError(f"{source}: broken JSON: {error}") from None
    if not isinstance(value, kind):
        found = _JSON_NAMES[type(value)]
        raise ValueError(f"{source}: holds {found}; expected {_JSON_NAMES[kind]}")
    return value


def object_without_repeated_keys(pairs):
    """What JSON's pairs of an object become. Raises ValueError where a key stands twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError("a key stands twice: " + repr(keys)[:200])
    return values


def short_list(names) -> str:
    """The first three of many names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
