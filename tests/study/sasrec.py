"""SASRec (Kang & McAuley 2018) on the splits and by the metrics of evaluate.py: python tests/study/sasrec.py --json FILE

The model is that of the library RePlay (tests/study/requirements.txt), with cross-entropy over all items in place of one negative, which
is stronger than the paper's (Klenitskiy & Vasilev 2023). It sees what the language models see: windows of `history` + 1 entries, each
entry predicted from those before it. Width and dropout are chosen by the validation targets (run.py: with seed 0), and so is the epoch. Its softmax
is over the titles of the catalogue, so its negative log-likelihood of a target compares with that of evaluate.py.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.sequential import SasRec

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
import evaluate  # noqa: E402
from ref import cli
from ref.data import dataset  # noqa: E402
from ref.files import write_json  # noqa: E402

SETTINGS = [{"size": size, "dropout": dropout} for size in (64, 128) for dropout in (0.2, 0.5)]
BATCH, PATIENCE, EPOCHS = 128, 6, 100


def new_model(titles, history, size, dropout):
    """The library's SASRec: two blocks of two heads, cross-entropy over all items; item `titles` is padding."""
    items = TensorFeatureInfo(
        "item",
        FeatureType.CATEGORICAL,
        is_seq=True,
        feature_hint=FeatureHint.ITEM_ID,
        embedding_dim=size,
        padding_value=titles,
        cardinality=titles,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item")],
    )
    return SasRec.from_params(
        TensorSchema([items]), size, 2, 2, history, dropout, hidden_dim=4 * size
    )


def padded(histories, data):
    """Filled up on the left, as the library wants it: int (B, history)."""
    rows = [
        np.pad(entries, (data.history - len(entries), 0), constant_values=len(data.titles))
        for entries in histories
    ]
    return torch.tensor(np.stack(rows).astype(np.int64))


def training_loss(model, windows, data):
    """Mean cross-entropy of every entry that has one before it."""
    shown, following = (
        padded([window[part] for window in windows], data)
        for part in (slice(None, -1), slice(1, None))
    )
    real = shown < len(data.titles)
    return model(
        {"item": shown},
        real,
        positive_labels=following[..., None],
        target_padding_mask=real[..., None],
    )["loss"]


@torch.inference_mode()
def log_probs(model, histories, data):
    """Of all titles behind each history, float32 (users, titles)."""
    out = []
    for begin in range(0, len(histories), 512):
        shown = padded(histories[begin : begin + 512], data)
        out.append(model({"item": shown}, shown < len(data.titles))["logits"].log_softmax(-1))
    return torch.cat(out)


def split(windows, data):
    """(histories, targets) of windows."""
    return [data.entries[s : e - 1] for s, e in zip(windows.starts, windows.ends)], data.entries[
        windows.ends - 1
    ].astype(np.int64)


def fit(data, seed, setting, epochs):
    """(validation loss of each epoch, the model of the best one)."""
    torch.manual_seed(seed)
    model = new_model(len(data.titles), data.history, **setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    histories, targets = split(data.valid, data)
    curve, best = [], None
    for epoch in range(1, epochs + 1):
        model.train()
        rng = np.random.default_rng([seed, epoch])
        windows = data.training_windows("titles", rng)
        windows = windows[rng.permutation(len(windows))]
        for begin in range(0, len(windows), BATCH):
            some = windows[slice(begin, begin + BATCH)]
            optimizer.zero_grad()
            training_loss(
                model, [data.entries[s:e] for s, e in zip(some.starts, some.ends)], data
            ).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        curve.append(-log_probs(model, histories, data)[range(len(targets)), targets].mean().item())
        if min(curve) == curve[-1]:
            best = copy.deepcopy(model)
        print(f"{setting} epoch {epoch}: validation {curve[-1]:.4f} nats a title", flush=True)
        if epoch - np.argmin(curve) > PATIENCE:
            break
    return curve, best


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)"
    )
    parser.add_argument("--limit", help="only the first so many test users")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="with --dropout: this setting alone")
    parser.add_argument("--dropout", type=float)
    parser.add_argument(
        "--max-steps", type=int, help="one epoch and one setting only, to try the command out"
    )
    parser.add_argument("--json", required=True, metavar="FILE", help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dataset.load(options.data)
    settings = [{"size": options.size, "dropout": options.dropout}] if options.size else SETTINGS
    settings, epochs = (settings[:1], 1) if options.max_steps else (settings, EPOCHS)
    fits = [(fit(data, options.seed, setting, epochs), setting) for setting in settings]
    (curve, model), setting = min(fits, key=lambda one: min(one[0][0]))
    asked = evaluate.parse_options(
        ["--ranking", "full", *(["--limit", options.limit] if options.limit else [])]
    )
    users = evaluate.test_users(data, asked)
    scores = log_probs(model, users.histories, data).numpy()
    nll = -scores[range(len(users.targets)), users.targets].astype(np.float64)
    found = evaluate.rank_scores(
        "SASRec", users, scores.__getitem__, asked, np.arange(len(data.titles)), nll
    )
    write_json(
        options.json,
        {
            "options": setting,
            "torch": torch.__version__,
            "valid": [round(value, 4) for value in curve],
            "best": min(curve),
            "metrics": {
                name: round(float(values.mean()), 5)
                for name, values in found.metrics.items()
                if name != "NDCG@1"
            },
            "ranks": found.ranks.astype(int).tolist(),
            "nll": [round(value, 3) for value in nll.tolist()],
        },
    )


if __name__ == "__main__":
    cli.run("sasrec.py", main)
