"""The fixtures of the tests; plain functions and tables are in tests/support."""

import json
import os
from dataclasses import replace

# Two processes run the tests; more threads than cores would make each of them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# XLA compiles the small functions of the JAX port in half the time without its new emitters.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_cpu_prefer_vector_width=128",
)

import hypothesis
import pytest
import torch

import evaluate
from ref.layouts import LAYOUTS
from ref.masks import MaskScheme
from ref.prompt import PromptEncoder
from ref.tokenizer import Tokenizer

from support import commands
from support.catalogue import TITLES
from support.data import made_up_rows, presplit_rows, write_interactions, write_presplit
from support.models import config_of, random_model

# Drawn examples are the same in each run, so that a test turns red for a change of code alone.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TITLES, 300)


@pytest.fixture(scope="session")
def encoder_for(tokenizer):
    """Makes a PromptEncoder over `tokenizer`."""

    def make(scheme=MaskScheme(), layout="lines", max_length=512):
        values = LAYOUTS[layout]
        if layout == "instruction":  # less text around: these tests count tokens in loops
            values = replace(values, before="Seen:\n", after="\nNext:\n")
        return PromptEncoder(tokenizer, values, scheme, max_length)

    return make


@pytest.fixture(scope="session")
def model_for(tokenizer):
    """Makes a random model over the vocabulary of `tokenizer`."""

    def make(scheme=MaskScheme(), seed=0, dtype=torch.float64, **changes):
        config = config_of(vocab_size=tokenizer.vocab_size, **changes)
        return random_model(config, scheme, seed, dtype)

    return make


@pytest.fixture
def interactions_folder(tmp_path):
    """interactions.csv and items.csv, made up."""
    return write_interactions(tmp_path / "made-up", made_up_rows())


@pytest.fixture
def presplit_folder(tmp_path):
    """train.csv, test.csv and titles with HTML entities, made up."""
    title = "Tom &amp; Jerry &quot;{}&quot;\u00a0 \n&lt;b&gt;"
    titles = {str(number): title.format(number) for number in range(12)}
    train, test = presplit_rows(40, begin=1000), presplit_rows(8, begin=2000, seed=1)
    return write_presplit(tmp_path / "presplit", train, test, titles)


@pytest.fixture
def run(capfd):
    """Call a script in this process: (exit code, standard output, standard error)."""

    def call(module, *arguments):
        capfd.readouterr()
        code = commands.run_main(module, *arguments)
        return commands.Ended(code, *capfd.readouterr())

    return call


@pytest.fixture
def report_of(run, tmp_path):
    """Evaluate one model folder or a list of them: the report that --json writes."""

    def call(data_folder, weights, *options):
        folders = weights if isinstance(weights, list) else [weights]
        path = tmp_path / "report.json"
        asked = ("--data", data_folder, "--weights", *folders, "--json", path, *options)
        ended = run(evaluate, *asked)
        assert ended.code == 0, ended.err
        return json.loads(path.read_text(encoding="utf-8"))

    return call


@pytest.fixture(scope="session")
def made_up_data(tmp_path_factory):
    """A data folder, made up, of 12 users."""
    return write_interactions(tmp_path_factory.mktemp("made-up") / "data", made_up_rows())


@pytest.fixture(scope="session")
def tiny_model(made_up_data):
    """A model trained on `made_up_data` for three steps with seed 0."""
    return commands.trained(made_up_data, made_up_data.parent / "model")


@pytest.fixture(scope="session")
def full_softmax_model(made_up_data):
    """The same with the full softmax, so that every token of a title counts."""
    options = ("--softmax", "full", "--cross-layers", 0)
    return commands.trained(made_up_data, made_up_data.parent / "full", *options)
