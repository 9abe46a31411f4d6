"""Made-up data folders, tokenizers and model folders for the tests; no title here is of a real data set."""

import csv
import gzip
import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
import torch

from ref.checkpoints import save_model
from ref.checkpoints.config import parse_config
from ref.llama import Llama, LlamaConfig
from ref.masks import MaskScheme
from ref.tokenizer import Tokenizer

TITLES = (
    'The "Quoted" Tale',
    "Commas, Commas, and Commas",
    "[Brackets] (and others) {too}",
    "under\u2581score\u2581bar",
    "A Family \U0001f469\u200d\U0001f469\u200d\U0001f467 Trip",
    "中文書名：長夜",
    "Cafe\u0301 Re\u0301sume\u0301 n\u0303o",
    "long " + "x" * 495,
    '", "',
    "### Response:",
    "<s> </s> <unk> <0x41>",
    "Tom & Jerry's <b>Day</b>",
    "\\n is no newline",
    "A",
    "A Tale",
    "A Tale of Tales",
    "100% (1999)",
    "-- DROP TABLE items; --",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "zero\u200bwidth \ufeffmark",
)
MADE_UP = ("--min-item", 1, "--min-user", 3)
TINY = (
    *MADE_UP,
    "--layers",
    2,
    "--hidden-size",
    16,
    "--heads",
    2,
    "--vocabulary",
    450,
    "--max-steps",
    3,
    "--batch-size",
    4,
    "--threads",
    1,
)


def made_up_rows(users=12, entries=8, items=len(TITLES), seed=0):
    """(user, item, time) with ties in time, users mixed, not in order of time."""
    rng = random.Random(seed)
    rows = [
        (f"u{user}", f"i{rng.randrange(items)}", rng.randrange(6))
        for user in range(users)
        for _ in range(entries)
    ]
    rng.shuffle(rows)
    return rows


def csv_bytes(header, rows):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def write_interactions(folder, rows, titles=None, suffix=""):
    """interactions.csv and items.csv; titles: {item id: title}, by default TITLES as i0, i1, ..."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    titles = (
        {f"i{number}": title for number, title in enumerate(TITLES)} if titles is None else titles
    )
    files = {
        "interactions.csv": csv_bytes(("user_id", "item_id", "timestamp"), rows),
        "items.csv": csv_bytes(("item_id", "title"), titles.items()),
    }
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def write_presplit(folder, train, test, names):
    """id2name4Rec.json, train.csv and test.csv from rows (list of item ids, time)."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "id2name4Rec.json").write_text(json.dumps(names), encoding="utf-8")
    for name, rows in (("train.csv", train), ("test.csv", test)):
        lines = [(number, json.dumps(items), time) for number, (items, time) in enumerate(rows)]
        (folder / name).write_bytes(csv_bytes(("user_id", "item_ids", "timestamp"), lines))
    return folder


def presplit_rows(number, begin, items=12, seed=0):
    """Windows of 5 to 11 items, not in order of time."""
    rng = random.Random(seed)
    rows = [
        ([rng.randrange(items) for _ in range(rng.randrange(5, 12))], begin + place)
        for place in range(number)
    ]
    rng.shuffle(rows)
    return rows


def sentencepiece_model(titles, vocab_size, **options):
    """A tokenizer like that of a language model: BPE with bytes, <s> and </s>, the newline a byte."""
    model = io.BytesIO()
    settings = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(titles),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        minloglevel=2,
        num_threads=1,
        **settings | options,
    )
    return Tokenizer(model.getvalue(), "a made-up tokenizer")


def write_llm(folder, tokenizer, max_length=1024, scheme=MaskScheme()):
    """A language model as others save it: config.json, model.safetensors, tokenizer.model, no more."""
    config = parse_config(
        {
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": max_length,
        }
    )
    torch.manual_seed(5)
    save_model(Llama(config, scheme), folder)
    tokenizer.save(folder)
    return Path(folder)


@pytest.fixture
def interactions_folder(tmp_path):
    return write_interactions(tmp_path / "made-up", made_up_rows())


@pytest.fixture
def presplit_folder(tmp_path):
    names = {
        str(number): f"Tom &amp; Jerry &quot;{number}&quot;\u00a0 \n&lt;b&gt;"
        for number in range(12)
    }
    return write_presplit(
        tmp_path / "presplit", presplit_rows(40, 1000), presplit_rows(8, 2000, seed=1), names
    )
