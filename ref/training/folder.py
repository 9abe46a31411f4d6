"""The folder of a training, --out: what is in it before, while and after the loop runs.

`run` is the Run of train.py, `progress` the Progress of ref/training/state.py.
"""

import fcntl
import hashlib
import os
import platform
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from ref.checkpoints.config import config_values
from ref.settings import write_catalogue
from ref.training import processes, state

_MODELS = ("model.safetensors", "adapter_model.safetensors")


@contextmanager
def locked(out):
    """Keep other trainings out of a folder, which is made if need be, until the block is done.

    Only the first process holds the lock. It is on the folder itself: no file stays behind, and the
    system frees it when the process ends, however that happens. A folder that was made, and in
    which nothing was written, is removed at the end.
    Raises ValueError if another training holds the lock, or if there is no folder to be had.
    """
    if not processes.is_first():
        yield
        return
    is_new = not Path(out).exists()
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"{out}: is a file or a link to nothing, or would lie in a file; expected a folder"
        ) from None
    folder = os.open(out, os.O_RDONLY)
    try:
        _lock(folder, out)
        try:
            yield
        finally:
            if is_new:
                with suppress(OSError):  # it is not empty, once the training has begun
                    os.rmdir(out)
    finally:
        os.close(folder)


def _lock(folder, out):
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{out}: another training (or --resume) is writing there; wait for it or choose "
            "another --out"
        ) from None
    except OSError as error:  # some network file systems lock no folders
        processes.say(
            f"{out} cannot be locked ({error.strerror}): see that no other training writes there"
        )


def refuse_a_used_folder(out):
    """Raise ValueError where the folder holds files that a new training would mix with its own."""
    paths = Path(out).glob("*")
    # of a training that was killed at once nothing is left but half a log
    names = sorted(path.name for path in paths if not path.match("log.jsonl.*.part"))
    for name in _MODELS:
        if name in names:
            raise ValueError(f"{out} already holds a model; choose another --out, or remove it")
    if "log.jsonl" in names:
        raise ValueError(
            f"{out} holds log.jsonl, as of a training that was stopped; go on with --resume {out}, "
            "or choose another --out"
        )
    if names:
        raise ValueError(f"{out} is not empty: it holds {names[0]!r}; choose another --out")


def refuse_a_lost_model(out):
    """Raise ValueError where the model is gone that a training has left in its folder."""
    if not any(Path(out, name).exists() for name in _MODELS):
        raise ValueError(
            f"{out}: its training has written a model, but there is no {' or '.join(_MODELS)}; put "
            "the file back, or remove the folder and train again"
        )


def open_folder(run):
    """Make --out ready for the loop: log, tokenizer, settings; the Progress to go on from."""
    options, out = run.options, Path(run.options.out)
    progress = state.Progress()
    if options.resume:
        state.refuse_another_start(out, start_of(run))
        progress = state.restore_state(out, run.model, run.optimizer)
        if progress.best:
            refuse_a_lost_model(out)
        elif not progress.step:
            state.refuse_lost_states(out)
    if processes.is_first():
        state.remove_half_files(out)
        if options.resume:
            state.cut_log(out, progress)
        else:
            state.start_log(out, description(run))
        run.objective.encoder.tokenizer.save(out)
        run.objective.settings.save(out)
        write_catalogue(out, run.data.titles)
    if options.resume and progress.step:
        processes.say(
            f"going on after epoch {progress.epoch}, step {progress.step} of {progress.total}"
        )
    elif options.resume:
        processes.say("no state to go on from: from the start")
    return progress


def description(run):
    """What is needed to run this training again: the first line of its log."""
    data = run.data
    return {
        "options": vars(run.options),
        "processes": processes.WORLD,
        "loss": run.objective.loss,
        **start_of(run),
        "data": {
            "source": data.source,
            "titles": len(data.titles),
            "entries": len(data.items),
            "sequences_sha256": data.sequences_digest(),
            "fingerprint": state.fingerprint(data),
        },
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "sentencepiece": sentencepiece.__version__,
        "machine": platform.platform(),
    }


def start_of(run):
    """What a training begins with besides its options and data: files that they name may change."""
    trie = run.objective.trie
    tokens = hashlib.sha256(trie.token.tobytes() + trie.leaf.tobytes())
    return {
        "scheme": vars(run.model.scheme),
        "config": config_values(run.model.config),
        "layout": asdict(run.objective.settings.layout),
        "tokens of the titles": tokens.hexdigest(),
    }


def close_folder(run, progress):
    """The training is finished: its states are not needed any more."""
    out = run.options.out
    if processes.is_first():
        state.remove_states(out)
    if progress.step < progress.total:
        processes.say(
            f"stopped early, after step {progress.step} of {progress.total}: "
            f"{progress.waited} epochs without a better validation (--patience)"
        )
    best = progress.best
    processes.say(
        f"best validation: {best['valid']:.3f} nats a title, at step {best['step']}; wrote {out}"
    )
    if progress.tally.dropped:
        processes.say(
            f"{progress.tally.dropped} items of histories were left out of prompts longer than "
            f"{run.objective.encoder.max_length} tokens"
        )
