"""Runs of train.py in processes of their own, forked from one that has imported all it needs."""

import multiprocessing
import os
import resource
import tempfile
from pathlib import Path

import train
from ref import cli

# A fork of a process that has computed could not: the server has imported train.py and no more.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["train"])
_LONGEST = 120  # seconds


def nothing():
    """No preparation."""


class Training:
    """train.py with some arguments, begun at once; `prepare` is called before it, and pickled.

    returncode: as that of subprocess, once it has ended. stdout, stderr: what it has written.
    """

    def __init__(self, *arguments, prepare=nothing):
        self.returncode = None
        self._folder = tempfile.TemporaryDirectory()
        self._paths = [Path(self._folder.name) / name for name in ("out", "err")]
        words = [str(argument) for argument in arguments]
        self._process = _FORKS.Process(target=_train, args=(self._paths, prepare, words))
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

    def is_running(self):
        return self._process.is_alive()

    def _text(self, number):
        path = self._paths[number]
        return path.read_text(encoding="utf-8") if path.exists() else ""


def _train(paths, prepare, arguments):
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    prepare()
    cli.run("train.py", lambda: train.main(arguments))


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


def full_disk():
    """No file may grow beyond 40 kB. Python ignores SIGXFSZ: a longer write is an error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
