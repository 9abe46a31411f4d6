"""Write a Llama with random weights, as large as SmolLM2-135M, with the 32,000 tokens of Mistral.

python tests/bench/make_llm.py FOLDER
"""

import shutil
import sys
from pathlib import Path

import mistral_common
import torch
import transformers


def write_llm(folder):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    shutil.copy(tokenizer, folder / "tokenizer.model")


if __name__ == "__main__":
    write_llm(Path(sys.argv[1]))
    print(f"wrote {sys.argv[1]}")
