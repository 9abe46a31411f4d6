"""Train a pretrained model and measure it, fast: python tests/study/pretrained.py FILE [options]

The options are those of train.py. FILE gets the negative log-likelihood of each test target by the
model of --out, in nats. train.py with two differences in how things are computed, none in what:
torch.compile translates the layers, and attention is the equation, because PyTorch's kernel for it
is slow in bfloat16 on a CPU (a training step takes 1.4 times as long). When measuring, products are
in bfloat16, whatever --dtype says of the training.
"""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import evaluate
import train
from ref import cli, llama, recommender
from ref.data import dataset
from ref.data.columns import Columns
from ref.files import write_json
from ref.loss import Objective
from ref.training.batches import titles_of_windows
from ref.training.options import parse_options
from ref.trie import build_trie

TOGETHER = 16  # targets that are measured at a time


def compile_layers():
    """Let all Llamas of this process compute with compiled layers, attention by the equation."""
    attend = llama.attend
    llama.attend = lambda q, k, v, mask, _: attend(q, k, v, mask, "eager")
    llama.Block.forward = torch.compile(llama.Block.forward, dynamic=True)


@torch.inference_mode()
def likelihoods(weights, folder, limit=None):
    """Negative log-likelihood of the first `limit` test targets, in nats, without ranking.

    As evaluate.py computes it, unless a prompt is so long that items are dropped: that also makes
    room for the longest title.
    """
    model, encoder, settings = recommender.load_model_and_encoder(weights)
    data = dataset.load(
        folder,
        settings.history,
        settings.min_item,
        settings.min_user,
        settings.test_items,
        Columns(min_rating=settings.min_rating),
    )
    trie = build_trie(encoder, data.titles)
    objective = Objective(encoder, trie, data.titles, settings, "target")
    windows = titles_of_windows(data.test[:limit], data)
    nats = []
    for begin in tqdm(range(0, len(windows), TOGETHER), disable=None):
        batch = windows[begin : begin + TOGETHER]
        nats += evaluate.target_nll(model, objective, batch, "cpu").tolist()
    return [round(value, 3) for value in nats]


def main():
    file, *words = sys.argv[1:]
    compile_layers()
    exit_code = train.main(words)
    if exit_code:
        return exit_code
    options = parse_options(words)
    with torch.autocast("cpu", torch.bfloat16):
        write_json(file, likelihoods(options.out, options.data))
    return 0


if __name__ == "__main__":
    cli.run("pretrained.py", main)
