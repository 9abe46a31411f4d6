"""How commands end, whatever happens, and what they do to files that are none."""

import contextlib
import errno
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ref import cli, files, recommend
from ref.golden import __main__ as checker
from ref.golden import case as cases
from ref.golden.adapter import compare_adapter, load_adapter
from ref.golden.computed import read_dump
from ref.masks import build_masks
from ref.report.tables import user_text

from support.commands import ROOT

EVIL, ESCAPED = "Heat\x1b[2J\x9b31m\u2028(1995)", r"Heat\x1b[2J\x9b31m\u2028(1995)"


def raising(error):
    """A command that raises an exception."""

    def main():
        raise error

    return main


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def ctrl_c_interrupts(monkeypatch):
    """A shell lets its jobs in the background ignore Ctrl-C."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def broken_pipe():
    """A stream to a pipe that nobody reads, as `| head` leaves it."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as stream:
        yield stream


@pytest.fixture
def full_disk():
    with open("/dev/full", "w") as stream:
        yield stream


@pytest.fixture
def no_file(tmp_path):
    """A path where there is a device; reading it, unlike most devices, ends at once."""
    path = tmp_path / "device"
    path.symlink_to(os.devnull)
    return path


# --- the end of a command


@pytest.mark.parametrize(
    "main, code, message",
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raising(SystemExit(0)), 0, ""),
        (raising(SystemExit(3)), 3, ""),
        (raising(ValueError("a.csv: line 1")), 2, "name: a.csv: line 1\n"),
        (raising(OSError(errno.EIO, "input/output", "a.csv")), 2, "input/output: 'a.csv'\n"),
        (raising(OverflowError("too large")), 2, "name: too large\n"),
        (lambda: torch.empty(2**55), 2, "name: not enough memory: "),
        (lambda: np.empty(2**55), 2, "name: not enough memory: "),
        (press_ctrl_c, 130, ""),
    ],
)
def test_a_command_ends_with_its_exit_code_and_at_most_one_line(main, code, message, capsys):
    assert cli.exit_code("name", main) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == (1 if message else 0)


def test_an_error_of_pytorch_that_is_not_one_of_memory_is_a_mistake(capsys):
    assert cli.exit_code("name", raising(RuntimeError("shapes cannot be multiplied"))) == 70
    assert "not enough memory" not in capsys.readouterr().err


def test_a_mistake_of_the_program_is_exit_code_70_and_a_line_that_says_where_it_is(capsys):
    lines = (ROOT / "ref/masks.py").read_text(encoding="utf-8").splitlines()
    number = 1 + next(n for n, line in enumerate(lines) if "segment_ids.is_floating_point" in line)

    assert cli.exit_code("name", lambda: build_masks(None, None)) == 70

    error = capsys.readouterr().err
    assert error.startswith(f"name: unexpected AttributeError in ref/masks.py:{number}: ")
    assert error.count("\n") == 1


def test_a_library_in_the_folder_of_the_program_is_not_taken_for_the_program(tmp_path, monkeypatch):
    library = tmp_path / ".venv" / "site-packages" / "library.py"
    library.parent.mkdir(parents=True)
    program = tmp_path / "program.py"
    monkeypatch.setattr(cli, "_ROOT", tmp_path)
    namespace = {}
    exec(compile("def fail():\n    {}[0]", library, "exec"), namespace)
    exec(compile("\ndef main():\n    fail()", program, "exec"), namespace)

    with pytest.raises(KeyError) as caught:
        namespace["main"]()

    assert cli.place_of(caught.value) == "program.py:3"


def test_the_standard_library_in_a_folder_is_not_taken_for_what_lies_there():
    with pytest.raises(ValueError) as caught:
        json.loads("")

    line = cli.place_of(caught.value, Path("/"))

    assert line.startswith(str(Path(__file__).relative_to("/")))


def test_a_message_of_a_thousand_characters_keeps_its_begin_and_end(capsys):
    cli.exit_code("name", raising(ValueError("begin" + 1000 * "." + "end")))
    line = capsys.readouterr().err.rstrip("\n")
    assert 490 <= len(line) <= 500
    assert line.startswith("name: begin...") and line.endswith("...end")


def test_a_message_cannot_steer_the_terminal_or_fill_a_second_line(capsys):
    cli.exit_code("name", raising(ValueError(f"{EVIL}\n\x07\x7f: é\u00a0日")))
    assert capsys.readouterr().err == "name: Heat\\x1b[2J\\x9b31m (1995) \\x07\\x7f: é\u00a0日\n"


@pytest.mark.parametrize("text", ["one line", "a page\n" * 10_000], ids=["held back", "written"])
def test_output_that_nobody_reads_ends_a_command_quietly(text, broken_pipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", broken_pipe)
    assert cli.exit_code("name", lambda: print(text)) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["one line", "a page\n" * 10_000], ids=["held back", "written"])
def test_a_full_disk_behind_standard_output_is_said(text, full_disk, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", full_disk)
    assert cli.exit_code("name", lambda: print(text)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"name: standard output: .*No space left on device\n", error)


def test_bad_input_is_exit_code_2_where_nobody_reads_the_message(broken_pipe, monkeypatch):
    broken_pipe.reconfigure(line_buffering=True)  # as standard error is
    monkeypatch.setattr(sys, "stderr", broken_pipe)
    assert cli.exit_code("name", raising(ValueError("message"))) == 2


def test_closed_streams_do_not_hinder_a_command(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    def main():
        print("text")
        with cli.progress_bar(1, "work", "target") as bar:
            bar.update()

    assert cli.exit_code("name", main) == 0
    assert cli.exit_code("name", raising(ValueError("message"))) == 2


def test_a_terminal_that_cannot_show_a_title_gets_it_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.exit_code("name", lambda: print("Amélie 日")) == 0
    assert stream.buffer.getvalue() == b"Am\\xe9lie \\u65e5\n"


def test_python_itself_has_nothing_to_add_when_both_streams_are_broken(broken_pipe):
    program = "import sys; from ref import cli; cli.run('name', lambda: print('text'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=broken_pipe, stderr=broken_pipe
    )
    assert done.returncode == 141  # Python's own code for streams that it cannot write is 120


COMMANDS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "recommend": "ref.recommend",
    "ref.golden": "ref.golden",
    "ref.golden.detection": "ref.golden.detection",
    "ref.report.draw_curve": "ref.report.draw_curve",
    "ref.report.draw_masks": "ref.report.draw_masks",
}


def ended(module, *arguments):
    """The exit code of `python -m MODULE`, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")
    return end.value.code


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name, module", COMMANDS.items())
def test_a_wrong_option_is_one_line_that_begins_with_the_command(name, module, capsys):
    assert ended(module, "--no-such-option") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{name}: ") and error.count("\n") == 1
    assert error.endswith("; --help lists the options\n")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_command_that_draws_masks_prints_the_three_kinds(capsys):
    assert ended("ref.report.draw_masks") == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"\b{kind}\b", printed) for kind in ("IN", "OR", "CR"))


# --- what is printed of titles


def test_titles_of_users_cannot_steer_the_terminal():
    ranking = SimpleNamespace(top=[(0, -1.0)])
    model = SimpleNamespace(is_model=True, name="model", rankings=[ranking], true_titles=[1])
    targets = SimpleNamespace(user_ids=[0], histories=[[0]], titles=[0])
    text = user_text(0, targets, [model], [EVIL])
    assert text.count(ESCAPED) == 3  # history, target, recommended
    assert re.search(r"[\x1b\x9b\u2028]", text) is None


@pytest.mark.parametrize("as_json", [False, True])
def test_recommended_titles_cannot_steer_the_terminal(as_json, capsys):
    recommend.show([EVIL], [EVIL], 1, [(EVIL, -1.0)], Namespace(json=as_json))
    printed = capsys.readouterr().out
    assert re.search(r"[\x1b\x9b\u2028]", printed) is None
    if as_json:
        assert json.loads(printed)["history"] == [EVIL]
    else:
        assert printed.count(ESCAPED) == 2


# --- files


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        files.write_json(path, {"a": 1})
        assert json.load(reader) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"] and path.is_fifo()


def test_a_link_to_a_device_stays_and_a_link_to_a_file_is_followed(no_file, tmp_path):
    files.write_json(no_file, {})
    assert no_file.readlink() == Path(os.devnull)
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    files.write_json(link, {})
    assert target.read_text() == "{}\n" and link.is_symlink()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_the_permissions_of_a_new_file_are_those_that_the_umask_leaves(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        files.write_json(tmp_path / "file", {})
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused_and_the_old_file_stays(number, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="report.json: cannot be written: .*not JSON compliant"):
        files.write_json(path, {"a": [number]})
    assert path.read_text() == "before"


def test_a_name_that_is_not_utf8_is_written_as_json_escapes_it(tmp_path):
    files.write_json(tmp_path / "file", {"folder": "runs/\udcff é"})
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8"))["folder"] == "runs/\udcff é"


def test_a_full_disk_is_told_with_the_name_of_the_file_which_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", raising_full_disk)
    with pytest.raises(OSError, match="No space left on device: '.*/report.json'"):
        files.write_json(path, {})
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_an_error_that_names_another_file_keeps_that_name():
    with pytest.raises(FileNotFoundError) as told, files.naming("report.json"):
        open("nowhere.json")
    assert told.value.filename == "nowhere.json"


def raising_full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_breaks_off_while_it_is_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("{}")
    broken = contextlib.nullcontext(SimpleNamespace(read=raising_full_disk))
    monkeypatch.setattr(files, "open", lambda *_: broken, raising=False)
    with pytest.raises(OSError, match="config.json"):
        files.read_json(path)


@pytest.mark.parametrize("read", [files.read_text, files.read_bytes, read_dump])
def test_a_device_or_folder_is_refused_as_input(read, no_file, tmp_path):
    for path in (no_file, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path}: is no regular file"):
            read(path)


def test_a_device_in_place_of_the_tensors_of_a_case_is_refused(no_file, tmp_path):
    (tmp_path / "case").mkdir()
    info = (cases.FOLDER / "biases/case.json").read_bytes()
    (tmp_path / "case/case.json").write_bytes(info)
    no_file.rename(tmp_path / "case/tensors.safetensors")
    with pytest.raises(FileNotFoundError, match="tensors.safetensors: is no regular file"):
        cases.load("case", tmp_path)


# --- Ctrl-C while files are written


def test_ctrl_c_in_nested_blocks_interrupts_once_after_the_outermost():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with files.uninterrupted():
            with files.uninterrupted():
                press_ctrl_c()
                press_ctrl_c()
                done.append("inner")
            done.append("outer")
        done.append("behind")
    assert done == ["inner", "outer"]


def test_ctrl_c_is_not_lost_where_an_inner_block_fails():
    with pytest.raises(KeyboardInterrupt):
        with files.uninterrupted():
            with pytest.raises(OSError):
                with files.uninterrupted():
                    press_ctrl_c()
                    raise OSError
            saved = True
    assert saved


def test_ctrl_c_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with files.uninterrupted():
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_ctrl_c_while_a_file_is_written_comes_when_it_is_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with files.replacing(tmp_path / "file") as part:
            press_ctrl_c()
            Path(part).write_text("all of it")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["all of it"]


# --- adapters of the checker

PANICKING = """
class Panic(BaseException): pass
def run(case):
    raise Panic('at the\x1b disk')
"""
CHANGING_ITS_CASE = """
def run(case):
    for array in case.tensors.values():
        array.flags.writeable = True
        array[...] = 0
    return {'logits': case.outputs['logits']}
"""
CHANGING_THROUGH_TORCH = """
import torch
def run(case):
    logits = torch.from_numpy(case.outputs['logits'])
    return {'logits': logits.zero_()}
"""
LEAVING = "def run(case):\n    raise SystemExit(0)\n"
COMPLEX = (
    "import torch\ndef run(case):\n    return {'logits': torch.zeros(2, dtype=torch.cfloat)}\n"
)
RAISING_LATER = """
class Odd(dict):
    def items(self):
        raise KeyError('late')
def run(case):
    return Odd()
"""


@pytest.mark.parametrize(
    "text, message",
    [
        ("raise SystemExit(0)", "importing it raised SystemExit: 0"),
        ("class Panic(BaseException): pass\nraise Panic('x')", "importing it raised Panic: x"),
        (LEAVING, "run(case) raised SystemExit: 0"),
        (PANICKING, r"run(case) raised Panic: at the\x1b disk"),
        (COMPLEX, "logits is an array of complex64; expected numbers"),
        (RAISING_LATER, "'late'"),
    ],
)
def test_an_adapter_that_leaves_or_panics_is_one_line_and_exit_code_2(
    text, message, tmp_path, capsys
):
    (tmp_path / "adapter.py").write_text(text)
    assert checker.main(["run", str(tmp_path / "adapter.py"), "--case", "first-case"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("text", [CHANGING_ITS_CASE, CHANGING_THROUGH_TORCH])
def test_an_adapter_that_changes_its_case_is_compared_with_the_case_as_it_was(text, tmp_path):
    (tmp_path / "adapter.py").write_text(text)
    adapter = load_adapter(tmp_path / "adapter.py")
    assert compare_adapter(adapter, "first-case").first.tensor == "logits"


ESCAPING = """
def run(case):
    if case.name == 'biases':
        raise NotImplementedError('no\x1b biases')
    if case.name == 'first-case':
        raise ValueError('a\x1b')
    return {'logits': case.outputs['logits'], 'un\x1bknown': 0}
"""


def test_what_an_adapter_says_cannot_steer_the_terminal(tmp_path, capsys):
    (tmp_path / "adapter.py").write_text(ESCAPING)
    names = ("biases", "first-case", "plain-causal")
    options = [word for name in names for word in ("--case", name)]
    assert checker.main(["run", str(tmp_path / "adapter.py"), *options]) == 1
    printed = capsys.readouterr().out
    assert printed.count(r"\x1b") == 3 and "\x1b" not in printed


def test_ctrl_c_in_an_adapter_ends_the_checker(tmp_path, capsys):
    (tmp_path / "adapter.py").write_text("def run(case):\n    raise KeyboardInterrupt\n")
    assert checker.main(["run", str(tmp_path / "adapter.py"), "--case", "first-case"]) == 130
    assert capsys.readouterr().err == ""


def test_a_mistake_of_the_checker_is_no_deviation(monkeypatch, capsys):
    monkeypatch.setattr(checker, "infos_in_order", lambda stages: [][0])
    assert checker.main(["list"]) == 70
    assert "unexpected IndexError" in capsys.readouterr().err
