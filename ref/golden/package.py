"""All golden files in one archive, for the tests of a project in another language.

The archive holds a folder hatllm-golden with README.md and its pictures, index.json, bugs.json, the
schemas, the cases and the tokenizers, VERSION and SHA256SUMS (`sha256sum --check SHA256SUMS` inside
the folder). The same files give the same bytes.
"""

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

from ref.files import write_atomically
from ref.golden.case import FORMAT

ROOT = Path(__file__).parent
FOLDER = "hatllm-golden"
PATTERNS = ("README.md", "*.json", "*.svg", "schemas/*.json", "tokenizers/*", "cases/*/*")
OLDEST_IN_ZIP = (1980, 1, 1, 0, 0, 0)


def pack(path, root=ROOT):
    """Write the archive; returns (version, number of files).

    Raises ValueError where the name of the archive does not end in .tar.gz or .zip.
    """
    archivers = {".tar.gz": tar_gz, ".zip": zipped}
    archiver = next((make for end, make in archivers.items() if str(path).endswith(end)), None)
    if archiver is None:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(archivers)}")
    files = files_of(root)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    version = f"{FORMAT}.{hashlib.sha256(sums.encode()).hexdigest()[:12]}"
    files |= {"VERSION": f"{version}\n".encode(), "SHA256SUMS": sums.encode()}
    write_atomically(path, archiver(files))
    return version, len(files)


def files_of(root):
    """name -> bytes of all golden files, sorted by name."""
    paths = {path for pattern in PATTERNS for path in Path(root).glob(pattern)}
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def tar_gz(files):
    """A compressed tar archive without times and owners."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(memory.getvalue(), compresslevel=6, mtime=0)


def zipped(files):
    """A zip archive without times."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(f"{FOLDER}/{name}", OLDEST_IN_ZIP)
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return memory.getvalue()
