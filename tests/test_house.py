"""The house rules that a program can check: who imports whom, how wide and how long code is.

The imports are read from the source, those inside functions too. A new arrow between rooms needs a
new word in ROOMS.
"""

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from support.commands import ROOT
from support.sources import imports_of, tree_of

RUFF_SETTINGS = ROOT / "tests" / "ruff.toml"
MOST_LINES = 40  # of a function

# room or file: what it may import of ref, from the ground up. A room that names itself may import
# among its own files.
# fmt: off
ROOMS = {
    "masks":       "",
    "llama":       "masks",
    "llama_numpy": "",
    "trie":        "",
    "files":       "",
    "text":        "",
    "cli":         "",
    "lora":        "",
    "tokenizer":   "files text",
    "prompt":      "masks",
    "matching":    "",
    "layouts":     "prompt files text",
    "settings":    "layouts prompt files text",
    "overrides":   "layouts masks settings",
    "chunked":     "llama",
    "loss":        "chunked llama prompt settings",
    "data":        "files text data",
    "search":      "llama loss masks prompt trie settings search",
    "checkpoints": "llama masks lora files tokenizer checkpoints",
    "recommender": "checkpoints prompt settings text trie search",
    "training":    "checkpoints cli data.columns files layouts llama lora loss masks prompt "
                   "overrides settings tokenizer training trie",
    "report":      "checkpoints cli data files llama masks overrides recommender report "
                   "settings text training.processes training.state",
    "golden":      "llama_numpy llama masks checkpoints files cli report.svg golden",
}
# fmt: on
ALL_BUT_THE_ORACLE = " ".join(room for room in ROOMS if room != "golden")
SCRIPTS = {
    "train": ALL_BUT_THE_ORACLE,
    "evaluate": ALL_BUT_THE_ORACLE,
    "ref.recommend": ALL_BUT_THE_ORACLE,
}
# file: all that it may import beside the standard library
PACKAGES = {
    "ref.masks": {"torch"},
    "ref.llama": {"torch", "ref.masks"},
    "ref.llama_numpy": {"numpy"},
    "ref.trie": {"numpy"},
}
TOP_LEVEL = {
    "README.md",
    "requirements.txt",
    "ref",
    "weights",
    "tests",
    "train.py",
    "evaluate.py",
    ".ci",
    ".gitignore",
}
REQUIREMENTS = ["torch", "numpy", "safetensors", "sentencepiece", "tqdm", "pytest"]


def module_name(path):
    """The name of ref/search/beam.py is ref.search.beam; a package has the name of its folder."""
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def read_sources():
    """{module: source} of ref/, train.py and evaluate.py."""
    paths = [*(ROOT / "ref").rglob("*.py"), ROOT / "train.py", ROOT / "evaluate.py"]
    return {module_name(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def import_graph(sources):
    """{module: the modules among `sources` that it imports}."""
    graph = {}
    for module, source in sources.items():
        # "from ref.files import read_json" imports the module ref.files
        names = imports_of(source)
        modules = {name.rpartition(".")[0] for name in names if name not in sources}
        graph[module] = (names | modules) & (sources.keys() - {"ref"})
    return graph


def room_of(module):
    """The room of ref.search.beam is search; that of ref.masks is masks."""
    return module.split(".")[1]


def forbidden_imports(sources):
    """What ROOMS and SCRIPTS do not allow: ["module imports other", ...]."""
    found = []
    for module, others in import_graph(sources).items():
        if module == "ref":
            may_import = []
        elif module in SCRIPTS:
            may_import = SCRIPTS[module].split()
        else:
            may_import = ROOMS[room_of(module)].split()
        for other in sorted(others):
            if room_of(other) not in may_import and other.removeprefix("ref.") not in may_import:
                found.append(f"{module} imports {other}")
    return found


def arrows_used(sources):
    """{(room, a room or module that one of its files imports), ...}."""
    used = set()
    for module, others in import_graph(sources).items():
        if module != "ref" and module not in SCRIPTS:
            for other in others:
                used.add((room_of(module), room_of(other)))
                used.add((room_of(module), other.removeprefix("ref.")))
    return used


def circle(sources):
    """Modules that import each other in a circle, ["a", "b", "a"]; [] where there is none."""
    graph = import_graph(sources)
    without_circle = set()

    def search(path):
        for other in sorted(graph[path[-1]] - without_circle):
            if other in path:
                return [*path[path.index(other) :], other]
            if longer := search([*path, other]):
                return longer
        without_circle.add(path[-1])
        return []

    for module in sorted(graph):
        if module not in without_circle and (path := search([module])):
            return path
    return []


def packages_of(source):
    """What a source imports beside the standard library: packages, and modules of ref."""
    packages = set()
    for name in imports_of(source):
        parts = name.split(".")
        if parts[0] == "ref":
            packages.add(".".join(parts[:2]))
        elif parts[0] not in sys.stdlib_module_names:
            packages.add(parts[0])
    return packages


def users_of_planted_bugs(sources):
    """Modules outside ref/golden that import the planted bugs."""
    return [
        module
        for module, others in import_graph(sources).items()
        if any(other.startswith("ref.golden.plants") for other in others)
        and not module.startswith("ref.golden")
    ]


def long_functions(source):
    """["name: lines", ...] of the functions of more than MOST_LINES lines."""
    found = []
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_LINES:
                found.append(f"{node.name}: {lines}")
    return found


def unpinned(requirements):
    """Packages of a requirements.txt in their order, and the lines that pin no version."""
    lines = [line for line in requirements.splitlines() if line and not line.startswith("#")]
    packages = [re.split(r"[^\w.-]", line)[0] for line in lines]
    return packages, [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]


@pytest.fixture(scope="module")
def files():
    """The files that git tracks, and those that it would add, by their path from the top."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git, which lists the files")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


@pytest.fixture(scope="module")
def python_sources(files):
    """{path: source} of every Python file."""
    paths = [path for path in files if path.endswith(".py")]
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}


def test_every_import_is_an_arrow_of_the_table():
    assert forbidden_imports(read_sources()) == []


def test_the_arrows_that_files_use_are_seen_with_room_and_module():
    sources = {
        "ref.masks": "",
        "ref.report.svg": "",
        "ref.golden.case": "from ref.report.svg import Svg",
        "train": "from ref.masks import MaskScheme",
    }
    assert arrows_used(sources) == {("golden", "report"), ("golden", "report.svg")}


def test_every_arrow_of_the_table_is_used():
    arrows = {(room, other) for room, others in ROOMS.items() for other in others.split()}
    assert arrows - arrows_used(read_sources()) == set()


def test_every_row_of_the_table_is_a_room_or_file():
    rooms = {room_of(module) for module in read_sources() if module.startswith("ref.")}
    assert set(ROOMS) <= rooms


def test_an_import_that_is_no_arrow_is_seen_inside_a_function_too():
    sources = {
        "ref.masks": "import torch",
        "ref.files": "def read():\n    from ref import masks",
        "ref.report": "",
        "ref.report.svg": "",
        "ref.report.tables": "from ref.report.svg import Svg",
        "ref.golden": "from ref.report.svg import Svg\nimport ref.report.tables",
        "train": "from ref.masks import MaskScheme\nfrom ref.golden import case",
    }
    assert forbidden_imports(sources) == [
        "ref.files imports ref.masks",
        "ref.golden imports ref.report.tables",
        "train imports ref.golden",
    ]


def test_a_relative_import_is_refused():
    with pytest.raises(ValueError, match="line 1: relative import"):
        imports_of("from .masks import build_masks")


def test_no_modules_import_each_other_in_a_circle():
    assert circle(read_sources()) == []


def test_a_circle_that_hides_in_a_function_is_seen():
    sources = {
        "ref.a": "from ref.b import f",
        "ref.b": "import ref.c",
        "ref.c": "def f():\n    from ref import b",
        "ref.d": "import ref.a",
    }
    assert circle(sources) == ["ref.b", "ref.c", "ref.b"]
    assert circle(sources | {"ref.c": ""}) == []


@pytest.mark.parametrize("module", PACKAGES)
def test_the_files_that_stand_alone_import_no_more_than_they_may(module):
    assert packages_of(read_sources()[module]) <= PACKAGES[module]


def test_packages_are_seen_without_the_standard_library_and_inside_functions_too():
    source = "import math\nimport torch.nn\nfrom ref.masks import OR\ndef f():\n    import tqdm"
    assert packages_of(source) == {"torch", "ref.masks", "tqdm"}


def test_the_definitions_of_the_oracle_use_nothing_of_what_is_compared_with_them():
    sources = read_sources()
    definitions = [module for module in sources if module.startswith("ref.golden.definitions.")]
    assert len(definitions) >= 7
    for module in definitions:
        assert packages_of(sources[module]) <= {"numpy", "ref.llama_numpy", "ref.golden"}, module


def test_recipes_compute_by_the_definitions():
    """But for gradients: they are PyTorch's, and confirmed by finite differences elsewhere."""
    beside = {
        "ref.golden.recipes.model": {"torch", "ref.checkpoints"},  # gradients
        "ref.golden.recipes.weights": {"ref.checkpoints", "ref.llama", "ref.masks"},  # the names
    }
    sources = read_sources()
    recipes = [module for module in sources if module.startswith("ref.golden.recipes")]
    assert len(recipes) >= 10
    for module in recipes:
        allowed = {"numpy", "safetensors", "sentencepiece", "ref.llama_numpy", "ref.golden"}
        allowed |= {"ref.cli", "ref.files"} | beside.get(module, set())
        assert packages_of(sources[module]) <= allowed, module


def test_only_the_oracle_imports_the_planted_bugs():
    assert users_of_planted_bugs(read_sources()) == []


def test_an_import_of_the_planted_bugs_is_seen():
    source = "from ref.golden.plants import PLANTS"
    sources = {
        "ref.golden.plants": "",
        "ref.golden.plants.masks": "",
        "ref.golden.diagnosis": source,
        "ref.loss": source,
        "ref.trie": "from ref.golden.plants.masks import future_seen",
    }
    assert users_of_planted_bugs(sources) == ["ref.loss", "ref.trie"]


def test_no_function_is_longer_than_a_page(python_sources):
    long = {path: long_functions(source) for path, source in python_sources.items()}
    assert {path: functions for path, functions in long.items() if functions} == {}


def test_a_long_function_is_seen():
    methods = "class A:\n" + "\n".join(
        f"    def of_{lines}(self):\n" + "        pass\n" * (lines - 1) for lines in (40, 41)
    )
    assert long_functions(methods) == ["of_41: 41"]


def test_the_top_level_holds_what_a_reader_needs_and_nothing_else(files):
    assert {path.split("/")[0] for path in files} == TOP_LEVEL


def test_six_packages_are_required_at_one_version_each():
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert unpinned(requirements) == (REQUIREMENTS, [])


def test_a_package_without_its_version_is_seen():
    requirements = "# comment\ntorch==2.0.1\nnumpy>=2\ntqdm\n"
    assert unpinned(requirements) == (["torch", "numpy", "tqdm"], ["numpy>=2", "tqdm"])


def ruff(*arguments):
    """The exit code of ruff with the project's settings, and what it says."""
    command = [sys.executable, "-m", "ruff", *arguments, "--config", RUFF_SETTINGS, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_every_file_is_formatted_as_ruff_formats_it():
    code, output = ruff("format", "--check", ".")
    assert code == 0, output


def test_ruff_has_nothing_to_say():
    code, output = ruff("check", "--output-format", "concise", ".")
    assert code == 0, output


def test_a_file_that_ruff_would_change_or_complain_about_is_seen(tmp_path):
    (tmp_path / "sloppy.py").write_text("import os\nx = 'a'\n")
    assert ruff("format", "--check", tmp_path)[0] == 1
    code, output = ruff("check", tmp_path)
    assert code == 1 and "F401" in output


PUBLIC = {
    "ref.masks.MaskScheme": "(intra_layers=0, cross_layers=0, cross_self=True, text='visible', "
    "delimiters='item', target='item')",
    "ref.masks.MaskScheme.kinds": "(self, num_layers)",
    "ref.masks.build_masks": "(segment_ids, scheme, causal=None)",
    "ref.llama.Llama.__init__": "(self, config, scheme=MaskScheme(intra_layers=0, cross_layers=0, "
    "cross_self=True, text='visible', delimiters='item', target='item'), attention='sdpa', "
    "dropout=0.0)",
    "ref.llama.Llama.forward": "(self, input_ids, segment_ids, position_ids=None)",
    "ref.llama_numpy.forward": "(weights, config, input_ids, segment_ids, scheme, "
    "position_ids=None, trace=None)",
    "ref.checkpoints.load_model": "(folder, dtype=torch.float32, device='cpu', scheme=None, "
    "base=None, dropout=0.0)",
    "ref.checkpoints.save_model": "(model, folder, parameters=None)",
    "ref.recommender.Recommender.load": "(folder, device='cpu', dtype=torch.float32, base=None)",
    "ref.recommender.Recommender.recommend": "(self, history, k=10, exclude_seen=True, "
    "candidates=None)",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_others_call_has_the_parameters_and_defaults_that_they_know(name):
    function = pydoc.locate(name)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        parameters.append(str(parameter.replace(annotation=inspect.Parameter.empty)))
    assert f"({', '.join(parameters)})" == PUBLIC[name]
