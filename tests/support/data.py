"""Made-up data folders, tokenizers and model folders; no title here is of a real data set."""

import csv
import gzip
import io
import json
import random
from pathlib import Path

import sentencepiece
import torch

from ref.checkpoints import save_model
from ref.checkpoints.config import parse_config
from ref.llama import Llama
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
# fmt: off
FEW_STEPS = (*MADE_UP, "--max-steps", 3, "--batch-size", 4, "--threads", 1)
TINY = (*FEW_STEPS, "--layers", 2, "--hidden-size", 16, "--heads", 2, "--vocabulary", 450)
# fmt: on


def made_up_rows(users=12, interactions=8, items=20, seed=0):
    """[(user, item, time)]: so many of each user, none twice, with ties in time, all shuffled.

    The items are i0, i1, ...: those of TITLES, which has 20.
    """
    rng = random.Random(seed)
    rows = []
    for user in range(users):
        own = set()
        while len(own) < interactions:
            own.add((f"u{user}", f"i{rng.randrange(items)}", rng.randrange(6)))
        rows += sorted(own)
    rng.shuffle(rows)
    return rows


def csv_bytes(header, rows):
    """The bytes of a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def write_interactions(folder, rows, titles=None, suffix=""):
    """Write interactions.csv and items.csv; return the folder.

    rows: (user, item, time). titles: {item id: title}, by default TITLES as i0, i1, ...
    suffix: ".gz" to compress both.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    if titles is None:
        titles = {f"i{number}": title for number, title in enumerate(TITLES)}
    files = {
        "interactions.csv": csv_bytes(("user_id", "item_id", "timestamp"), rows),
        "items.csv": csv_bytes(("item_id", "title"), titles.items()),
    }
    for name, content in files.items():
        packed = gzip.compress(content) if suffix == ".gz" else content
        (folder / f"{name}{suffix}").write_bytes(packed)
    return folder


def write_presplit(folder, train, test, titles):
    """Write id2name4Rec.json, train.csv and test.csv; return the folder.

    train, test: windows as (list of item ids, time). titles: {item id: title}.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "id2name4Rec.json").write_text(json.dumps(titles), encoding="utf-8")
    for name, windows in (("train.csv", train), ("test.csv", test)):
        rows = [(user, json.dumps(items), time) for user, (items, time) in enumerate(windows)]
        (folder / name).write_bytes(csv_bytes(("user_id", "item_ids", "timestamp"), rows))
    return folder


def presplit_rows(number, begin, items=12, seed=0):
    """So many windows of 5 to 11 items, at the times `begin`, `begin` + 1, ..., shuffled."""
    rng = random.Random(seed)
    windows = []
    for place in range(number):
        length = rng.randrange(5, 12)
        windows.append(([rng.randrange(items) for _ in range(length)], begin + place))
    rng.shuffle(windows)
    return windows


def sentencepiece_model(titles, vocab_size, **options):
    """A tokenizer like that of a language model: BPE with bytes, <s>, </s>, the newline a byte."""
    model = io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(titles),
        model_writer=model,
        vocab_size=vocab_size,
        minloglevel=2,
        num_threads=1,
        **defaults | options,
    )
    return Tokenizer(model.getvalue(), "a made-up tokenizer")


def write_llm(folder, tokenizer, max_length=1024, scheme=MaskScheme()):
    """A language model as others save it: config.json, model.safetensors, tokenizer, no more."""
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


def titles_in(data, windows):
    """The titles of each window of a Dataset."""
    ranges = zip(windows.starts, windows.ends)
    return [[data.titles[item] for item in data.items[start:end]] for start, end in ranges]
