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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from ref import cli, llama
from ref.files import write_json
from ref.training.options import parse_options

from study import smollm


def compile_layers():
    """Let all Llamas of this process compute with compiled layers, attention by the equation."""
    attend = llama.attend
    llama.attend = lambda q, k, v, mask, _: attend(q, k, v, mask, "eager")
    llama.Block.forward = torch.compile(llama.Block.forward, dynamic=True)


def main():
    file, *words = sys.argv[1:]
    compile_layers()
    exit_code = train.main(words)
    if exit_code:
        return exit_code
    options = parse_options(words)
    with torch.autocast("cpu", torch.bfloat16):
        write_json(file, smollm.likelihoods(options.out, options.data))
    return 0


if __name__ == "__main__":
    cli.run("pretrained.py", main)
