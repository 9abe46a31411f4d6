"""Runs of train.py and evaluate.py in processes of their own, which need no time for imports.

They are forked from a server that has imported both scripts.
"""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path

import evaluate
import train
from ref import cli
from ref.training import processes

# A fork of a process that has computed could not: the server has imported, and no more.
_FORKS = multiprocessing.get_context("forkserver")
# the first step of an optimizer imports torch._dynamo: a second or two, in each fork
_FORKS.set_forkserver_preload(["train", "evaluate", "torch._dynamo"])
_SCRIPTS = {"train.py": train, "evaluate.py": evaluate}
_LONGEST = 300  # seconds


def nothing():
    """No preparation."""


class Fork:
    """A script with some arguments, begun at once; `prepare` is called before it, and pickled.

    environment: what torchrun would set, as `together` does.
    returncode: as that of subprocess, once it has ended. stdout, stderr: what it has written.
    """

    def __init__(self, script, *arguments, prepare=nothing, environment=None):
        self.returncode = None
        self._folder = tempfile.TemporaryDirectory()
        self._paths = [Path(self._folder.name) / name for name in ("out", "err")]
        words = [str(argument) for argument in arguments]
        of_child = (script, words, prepare, environment or {}, self._paths)
        self._process = _FORKS.Process(target=_run, args=of_child, daemon=True)
        self._process.start()

    @property
    def stdout(self):
        return self._text(0)

    @property
    def stderr(self):
        return self._text(1)

    def wait(self):
        """Itself when it has ended; what hangs is killed."""
        try:
            self._process.join(_LONGEST)
        finally:
            self.kill()
        return self

    def kill(self):
        """By SIGKILL, if it has not ended."""
        self._process.kill()
        self._process.join()
        self.returncode = self._process.exitcode

    def interrupt(self):
        """Press Ctrl-C; itself when it has ended."""
        os.kill(self._process.pid, signal.SIGINT)
        return self.wait()

    def is_running(self):
        return self._process.is_alive()

    def _text(self, number):
        path = self._paths[number]
        return path.read_text(encoding="utf-8") if path.exists() else ""


def together(number, script, *arguments, prepare=nothing):
    """A script in some processes that share the work, as torchrun would begin them: their Forks."""
    place = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Fork(script, *arguments, prepare=prepare, environment=place | {"RANK": str(rank)})
        for rank in range(number)
    ]


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(script, arguments, prepare, environment, paths):
    """What a Fork does in its own process."""
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment)
    # the module has read the environment of the server
    processes.RANK = int(environment.get("RANK", 0))
    processes.WORLD = int(environment.get("WORLD_SIZE", 1))
    sys.argv = [script, *arguments]
    prepare()
    cli.run(processes.name_of(script), _SCRIPTS[script].main)


class KillAtFile:
    """SIGKILL when a file is written for the Nth time: before it is renamed (the new file complete
    or cut in half), or just after."""

    def __init__(self, number, moment):
        self.number, self.moment = number, moment
        self.written = 0

    def __call__(self):
        self.replace, os.replace = os.replace, self.dying

    def dying(self, part, path):
        self.written += 1
        is_last = self.written == self.number
        if is_last and self.moment == "half":
            os.truncate(part, os.path.getsize(part) // 2)
        if not is_last or self.moment == "after":
            self.replace(part, path)
        if is_last:
            os.kill(os.getpid(), 9)


class LimitedMemory:
    """The process may grow by so many bytes, and no more."""

    def __init__(self, growth):
        self.growth = growth

    def __call__(self):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + self.growth,) * 2)


def full_disk():
    """No file may grow beyond 40 kB. Python ignores SIGXFSZ: a longer write is an error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
