"""Model folders of others: transformers 5 writes them, and says what they compute.

python tests/test_checkpoints.py prints how far apart the three implementations are, variant by
variant, and what is said of each bad folder.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import evaluate
import train
from ref import cli
from ref.checkpoints import load_model, save_model, weights
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters, write_tensors

from support.bad_folders import BAD_FOLDERS, CONFIG, SCALING, config, edited_tensors, rope
from support.checkpoints import (
    LIMITS,
    Variant,
    deviations,
    edited_json,
    largest_deviation,
    logits_of_torch,
    logits_of_transformers,
    segments_of,
    variants,
    write_checkpoint,
)
from support.commands import ROOT, run_main, trained
from support.data import MADE_UP
from support.forked import Fork

RETURN_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_numpy_torch_and_transformers_compute_the_same_from_one_folder(
    variant, tmp_path, monkeypatch
):
    monkeypatch.setattr(weights, "_NUMBERS_AT_ONCE", 100)  # a matrix is read in several parts
    largest = deviations(write_checkpoint(tmp_path, variant))

    assert all(deviation <= LIMITS[dtype] for (_, dtype), deviation in largest.items()), largest


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("variant", variants()[::3], ids=str)
def test_what_we_save_of_a_checkpoint_computes_the_same_in_transformers(variant, dtype, tmp_path):
    source = write_checkpoint(tmp_path / "source", variant)
    ours = tmp_path / "ours"
    theirs = tmp_path / "theirs"
    save_model(load_model(source, dtype), ours)
    transformers.LlamaForCausalLM.from_pretrained(ours, dtype=dtype).save_pretrained(theirs)

    expected = logits_of_transformers(source, dtype)
    for logits in (
        logits_of_transformers(ours, dtype, transformers.LlamaForCausalLM),
        logits_of_torch(ours, dtype),
        logits_of_torch(theirs, dtype),
    ):
        assert largest_deviation(source, logits, expected) <= RETURN_LIMITS[dtype]
    assert segments_of(theirs) is segments_of(source)  # transformers keeps "hatllm"


WITH_SCALED_ROPE = [variant for variant in variants() if variant.rope != "default"]


@pytest.mark.parametrize("variant", WITH_SCALED_ROPE[::4], ids=str)
def test_what_we_save_tells_version_4_of_its_rope_too(variant, tmp_path):
    source = write_checkpoint(tmp_path / "source", variant)
    ours = tmp_path / "ours"
    save_model(load_model(source), ours)
    with edited_json(ours / CONFIG) as values:
        del values["rope_parameters"]

    expected = logits_of_transformers(source, torch.float32)
    logits = logits_of_transformers(ours, torch.float32)
    assert largest_deviation(source, logits, expected) <= RETURN_LIMITS[torch.float32]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("layers", [0, 1])
def test_what_train_py_writes_computes_the_same_in_transformers_and_comes_back(
    layers, dtype, made_up_data, tmp_path
):
    masks = ("--intra-layers", layers, "--cross-layers", layers)
    name = str(dtype).removeprefix("torch.")
    ours = trained(made_up_data, tmp_path / "ours", *masks, "--dtype", name)
    theirs = tmp_path / "theirs"
    transformers.LlamaForCausalLM.from_pretrained(ours, dtype=dtype).save_pretrained(theirs)

    expected = logits_of_transformers(ours, dtype, transformers.LlamaForCausalLM)
    for folder in (ours, theirs):
        deviation = largest_deviation(ours, logits_of_torch(folder, dtype), expected)
        assert deviation <= RETURN_LIMITS[dtype]


def test_what_train_py_makes_of_a_mistral_computes_the_same_in_transformers(
    made_up_data, tiny_model, tmp_path
):
    variant = variants()[1]
    assert variant.model == "mistral"
    source = write_checkpoint(tmp_path / "source", variant, vocab_size=450)
    shutil.copy(tiny_model / "tokenizer.model", source)
    ours = trained(made_up_data, tmp_path / "ours", "--weights", source)

    expected = logits_of_transformers(ours, torch.float32, transformers.LlamaForCausalLM)
    deviation = largest_deviation(ours, logits_of_torch(ours, torch.float32), expected)
    assert deviation <= RETURN_LIMITS[torch.float32]
    # it was trained
    assert largest_deviation(ours, logits_of_torch(source, torch.float32), expected) > 0.01


def test_a_mistral_that_names_no_kv_heads_has_those_of_transformers():
    values = transformers.MistralConfig(num_attention_heads=32, sliding_window=None).to_dict()
    expected = values.pop("num_key_value_heads")
    assert parse_config(values).num_key_value_heads == expected != 32


def write_good_folders(parent):
    """The folders to be spoilt, as transformers writes them: one with shards, one without."""
    return {
        is_sharded: write_checkpoint(parent / name, Variant(shards=shards), vocab_size=450)
        for is_sharded, name, shards in ((False, "one", "one"), (True, "shards", "8KB"))
    }


@pytest.fixture(scope="module")
def good_folders(tmp_path_factory):
    return write_good_folders(tmp_path_factory.mktemp("good"))


def spoilt(good_folders, name, target):
    bad = BAD_FOLDERS[name]
    shutil.copytree(good_folders[bad.is_sharded], target)
    bad.spoil(target)
    return target


def error_of_loading(folder):
    """What a command says before it ends with exit code 2; another kind of error is raised."""
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
        cli.run("command", partial(load_model, folder))
    assert ended.value.code == 2
    return stderr.getvalue()


def test_the_folders_that_are_to_be_spoilt_are_good(good_folders):
    one, shards = (logits_of_torch(folder, torch.float32) for folder in good_folders.values())

    assert len(list(good_folders[True].glob("model-*"))) > 3
    assert np.array_equal(one, shards)


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_gets_one_line_that_names_the_file_what_was_found_and_what_was_expected(
    good_folders, name, tmp_path
):
    folder = spoilt(good_folders, name, tmp_path / "bad")

    line = error_of_loading(folder)

    assert line.startswith(f"command: {folder}") and len(line.splitlines()) == 1
    assert all(word in line for word in BAD_FOLDERS[name].words), line


@pytest.mark.parametrize(
    "name", ["folder missing", "no config.json", "no weights", "shard missing"]
)
def test_what_is_missing_is_a_file_not_found_error(good_folders, name, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(spoilt(good_folders, name, tmp_path / "bad"))


# fmt: off
BY_SCRIPT = {
    "evaluate": [
        "yarn", "mistral that says nothing of a window", "layer types that are no list",
        "vocabulary beyond all memory", "NaN", "missing, extra and misshapen",
        "a newline in a name", "random bytes", "shard missing",
    ],
    "train": [
        "qwen2", "more masks than layers", "int8", "only pytorch_model.bin", "folder missing",
        "link out of the folder",
    ],
}
# fmt: on


@pytest.fixture
def spoilt_recommender(good_folders, tiny_model, tmp_path):
    """A bad folder with all else that a recommender has."""

    def make(name):
        folder = spoilt(good_folders, name, tmp_path / "bad")
        if folder.exists():
            for file in ("tokenizer.model", "recommender.json"):
                shutil.copy(tiny_model / file, folder)
        return folder

    return make


def assert_refused(code, error, name):
    assert code == 2 and len(error.splitlines()) == 1, error
    assert all(word in error for word in BAD_FOLDERS[name].words), error


@pytest.mark.parametrize("name", BY_SCRIPT["evaluate"])
def test_evaluate_py_given_a_bad_folder_says_one_line_and_ends_with_code_2(
    name, spoilt_recommender, made_up_data, capfd
):
    arguments = ("--data", made_up_data, "--weights", spoilt_recommender(name))
    capfd.readouterr()

    code = run_main(evaluate, *arguments)

    assert_refused(code, capfd.readouterr().err, name)


@pytest.mark.parametrize("name", BY_SCRIPT["train"])
def test_train_py_given_a_bad_folder_says_one_line_and_ends_with_code_2(
    name, spoilt_recommender, made_up_data, tmp_path, capfd
):
    arguments = ("--data", made_up_data, "--weights", spoilt_recommender(name), *MADE_UP)
    capfd.readouterr()

    code = run_main(train, *arguments, "--out", tmp_path / "out")

    assert_refused(code, capfd.readouterr().err, name)


@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_a_bad_folder_ends_a_process_with_one_line_and_no_traceback(script, good_folders, tmp_path):
    folder = spoilt(good_folders, "yarn", tmp_path / "bad")
    arguments = [script, "--weights", folder]
    if script == "train.py":
        arguments += ["--out", tmp_path / "out"]

    done = Fork(*arguments).wait()

    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: {folder / CONFIG}: rope_type is 'yarn'")
    assert done.stderr.count("\n") == 1


def test_a_number_may_be_written_as_a_long_integer(good_folders, tmp_path):
    folder = shutil.copytree(good_folders[False], tmp_path / "model")
    config(rms_norm_eps=10**30)(folder)

    logits = load_model(folder)(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]))

    assert logits.isfinite().all()


@pytest.mark.parametrize("length", [32, 32.0])
def test_the_original_length_of_llama3_is_written_as_an_integer(length, good_folders, tmp_path):
    folder = shutil.copytree(good_folders[False], tmp_path / "model")
    rope("llama3", **SCALING["llama3"] | {"original_max_position_embeddings": length})(folder)

    save_model(load_model(folder), tmp_path)

    values = json.loads((tmp_path / CONFIG).read_text())
    for name in ("rope_parameters", "rope_scaling"):
        assert type(values[name]["original_max_position_embeddings"]) is int


@pytest.mark.parametrize("is_sharded", [False, True])
def test_the_rope_frequencies_of_old_conversions_are_passed_over(
    is_sharded, good_folders, tmp_path
):
    good = good_folders[is_sharded]
    folder = shutil.copytree(good, tmp_path / "model")
    with edited_tensors(min(folder.glob("*.safetensors"))) as tensors:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)

    expected = logits_of_torch(good, torch.float32)
    assert np.array_equal(logits_of_torch(folder, torch.float32), expected)


def test_a_folder_of_the_hugging_face_cache_whose_files_are_links_is_read(good_folders, tmp_path):
    snapshot = tmp_path / "snapshots" / "0123abcd"
    blobs = tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in good_folders[True].iterdir():
        shutil.copy(path, blobs / f"of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"of-{path.name}")

    expected = logits_of_torch(good_folders[True], torch.float32)
    assert np.array_equal(logits_of_torch(snapshot, torch.float32), expected)


def test_parameters_given_by_name_are_written_instead_of_the_models_own(good_folders, tmp_path):
    model = load_model(good_folders[False])
    parameters = {name: parameter + 1 for name, parameter in hf_parameters(model).items()}

    save_model(model, tmp_path, parameters)

    written = hf_parameters(load_model(tmp_path))
    assert written.keys() == parameters.keys()
    assert all(torch.equal(written[name], parameters[name]) for name in written)


def test_tensors_are_written_as_they_read_whatever_their_strides(tmp_path):
    tensor = torch.arange(6.0, requires_grad=True).view(2, 3).T

    write_tensors(tmp_path / "file.safetensors", {"x": tensor})

    assert torch.equal(load_file(tmp_path / "file.safetensors")["x"], tensor)


def test_no_normal_numbers_are_drawn_for_a_model_that_is_read(monkeypatch):
    def draw(*arguments, **options):
        pytest.fail("drew at random, for which PyTorch loads its compiler on the device meta")

    monkeypatch.setattr(torch.Tensor, "normal_", draw)
    model = load_model(ROOT / "weights" / "movielens-hat")
    assert model.embed_tokens.weight.std() > 0


MEASURE = """
import sys, torch
from ref.checkpoints import load_model
def peak():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
dtype, *first, folder = sys.argv[1:]
for small in first:
    load_model(small, getattr(torch, dtype))
before = peak()
model = load_model(folder, getattr(torch, dtype))
print(before, peak(), sum(p.nbytes for p in model.parameters()))
"""


def measured(dtype, *folders):
    """(peak before loading the last of the folders, peak, size of its model), bytes.

    VmHWM is of the process alone; ru_maxrss may be that of the process that started it.
    """
    command = [sys.executable, "-c", MEASURE, dtype, *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def write_large_checkpoint(folder, megabytes, stored):
    """Zeros under the names and shapes of transformers' model; the file takes no room on disk."""
    dtype = getattr(torch, stored)
    width = 1024
    numbers_of_a_layer = width * width * (2.5 + 12)
    numbers_of_the_ends = 2 * 32000 * width
    numbers = megabytes * 1e6 / dtype.itemsize - numbers_of_the_ends
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=round(numbers / numbers_of_a_layer),
        num_attention_heads=16,
        num_key_value_heads=4,
        dtype=stored,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        parameters = dict(transformers.LlamaForCausalLM(config).named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    write_zeros(folder / "model.safetensors", shapes, dtype)


def write_zeros(path, shapes, dtype):
    """Write a safetensors file whose numbers are a hole in it."""
    header = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {
            "dtype": {2: "BF16", 4: "F32"}[dtype.itemsize],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    header_bytes = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        file.truncate(file.tell() + end)


def test_loading_takes_little_more_memory_than_the_model_itself(good_folders, tmp_path):
    write_large_checkpoint(tmp_path, 330, "float32")

    peak_of_a_tiny_model, peak, size = measured("bfloat16", good_folders[False], tmp_path)

    print(f"model {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert size == pytest.approx(165e6, rel=0.1)
    # the embedding mapped at once would be 131e6 more
    assert peak - peak_of_a_tiny_model <= 1.15 * size + 25e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "stored, dtype", [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_loading_a_gigabyte_peaks_within_115_percent_of_the_model_and_400_megabytes(
    stored, dtype, tmp_path
):
    write_large_checkpoint(tmp_path, 1000, stored)

    before, peak, size = measured(dtype, tmp_path)

    print(
        f"{stored} file loaded as {dtype}: model {size / 1e6:.0f} MB, "
        f"peak {peak / 1e6:.0f} MB, of which {before / 1e6:.0f} before loading"
    )
    assert peak <= 1.15 * size + 400e6


def print_deviations():
    print(
        f"{'':3}{'torch 64':>9}{'numpy 64':>9}{'torch 32':>9}{'numpy 32':>9}"
        "  largest deviations from transformers in float64, float32"
    )
    rows = []
    for number, variant in enumerate(variants(), start=1):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(list(deviations(write_checkpoint(folder, variant)).values()))
        print(f"{number:2} " + "".join(f"{value:9.1e}" for value in rows[-1]) + f"  {variant}")
    largest = [max(column) for column in zip(*rows)]
    summary = f"  the largest of {len(rows)} configurations\n"
    print("   " + "".join(f"{value:9.1e}" for value in largest) + summary)


def print_errors():
    with tempfile.TemporaryDirectory() as folder:
        good_folders = write_good_folders(Path(folder))
        for number, name in enumerate(BAD_FOLDERS, start=1):
            bad = Path(folder) / "bad"
            line = error_of_loading(spoilt(good_folders, name, bad)).strip()
            line = line.removeprefix("command: ").replace(f"{folder}/", "")
            print(f"{number:2} {name:38} {line}")
            shutil.rmtree(bad, ignore_errors=True)


if __name__ == "__main__":
    print_deviations()
    print_errors()
