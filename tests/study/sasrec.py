"""SASRec on the splits and by the metrics of evaluate.py: python tests/study/sasrec.py --json FILE

The model (Kang & McAuley 2018) is that of the library RePlay (tests/study/requirements.txt), with
cross-entropy over all items in place of one negative, which is stronger than the paper's
(Klenitskiy & Vasilev 2023). It sees what the language models see: windows of `history` + 1 items,
each item predicted from those before it. The epoch is chosen by the validation targets; width and
dropout are those that they chose in the earlier study. Its softmax is over the titles of the
catalogue, so its negative log-likelihood of a target compares with that of evaluate.py.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import evaluate
from ref import cli
from ref.data import dataset
from ref.files import write_json
from ref.report.ranking import evaluate_scores
from ref.report.targets import targets_of
from ref.training.batches import titles_of_windows

SIZE, DROPOUT = 64, 0.5  # of 64 and 128, 0.2 and 0.5
BATCH, PATIENCE, EPOCHS = 128, 6, 100


def new_model(titles, history):
    """The library's SASRec: two blocks of two heads, cross-entropy over all items.

    titles: their number; as an item it is padding.
    """
    items = TensorFeatureInfo(
        "item",
        FeatureType.CATEGORICAL,
        is_seq=True,
        feature_hint=FeatureHint.ITEM_ID,
        embedding_dim=SIZE,
        padding_value=titles,
        cardinality=titles,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item")],
    )
    return SasRec.from_params(
        TensorSchema([items]), SIZE, 2, 2, history, DROPOUT, hidden_dim=4 * SIZE
    )


def padded(histories, data):
    """Filled up on the left, as the library wants it: int (B, history)."""
    rows = []
    for items in histories:
        missing = data.history - len(items)
        rows.append(np.pad(items, (missing, 0), constant_values=len(data.titles)))
    return torch.tensor(np.stack(rows).astype(np.int64))


def training_loss(model, windows, data):
    """Mean cross-entropy of every item that has one before it."""
    shown = padded([window[:-1] for window in windows], data)
    following = padded([window[1:] for window in windows], data)
    real = shown < len(data.titles)
    return model(
        {"item": shown},
        real,
        positive_labels=following[..., None],
        target_padding_mask=real[..., None],
    )["loss"]


@torch.inference_mode()
def log_probs(model, histories, data):
    """Of all titles after each history, float32 (targets, titles)."""
    out = []
    for begin in range(0, len(histories), 512):
        shown = padded(histories[begin : begin + 512], data)
        out.append(model({"item": shown}, shown < len(data.titles))["logits"].log_softmax(-1))
    return torch.cat(out)


def fit(data, seed, epochs):
    """(model of the best epoch, validation loss after each), of at most so many epochs."""
    torch.manual_seed(seed)
    model = new_model(len(data.titles), data.history)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    curve, best = [], None
    for epoch in range(1, epochs + 1):
        train_epoch(model, optimizer, data, np.random.default_rng([seed, epoch]))
        curve.append(validate(model, data))
        if min(curve) == curve[-1]:
            best = copy.deepcopy(model)
        print(f"epoch {epoch}: validation {curve[-1]:.4f} nats a title", flush=True)
        if epoch - np.argmin(curve) > PATIENCE:
            break
    return best, curve


def train_epoch(model, optimizer, data, rng):
    model.train()
    windows = data.training_windows("titles", rng)
    windows = windows[rng.permutation(len(windows))]
    for begin in range(0, len(windows), BATCH):
        optimizer.zero_grad()
        batch = windows[begin : begin + BATCH]
        training_loss(model, titles_of_windows(batch, data), data).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def validate(model, data):
    """Mean negative log-likelihood of the validation targets, in nats."""
    model.eval()
    windows = titles_of_windows(data.valid, data)
    targets = [int(window[-1]) for window in windows]
    scores = log_probs(model, [window[:-1] for window in windows], data)
    return -scores[range(len(targets)), targets].mean().item()


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)")
    add("--min-user", type=int, default=5, help="as in train.py")
    add("--test-items", type=int, default=1, help="as in train.py")
    add("--seed", type=int, default=0)
    add("--trial", action="store_true", help="one epoch only, to try the command out")
    add("--json", required=True, metavar="FILE", help="where the figures go")
    return parser.parse_args()


def main():
    options = parse_options()
    torch.set_num_threads(1)
    data = dataset.load(options.data, min_user=options.min_user, test_items=options.test_items)
    model, curve = fit(data, options.seed, 1 if options.trial else EPOCHS)
    write_json(options.json, report(model, curve, data))


def report(model, curve, data):
    """What goes into the file: the training, and the full ranking of the test targets."""
    # targets_of and evaluate_scores take the options of evaluate.py
    options = evaluate.parse_options(["--ranking", "full"])
    targets = targets_of(data, options)
    scores = log_probs(model, targets.histories, data).numpy()
    nll = -scores[range(len(targets)), targets.titles].astype(np.float64)
    result = evaluate_scores("SASRec", scores, targets, options)
    metrics = result.metrics | {"NLL": nll}
    return {
        "options": {"size": SIZE, "dropout": DROPOUT},
        "torch": torch.__version__,
        "valid": [round(value, 4) for value in curve],
        "metrics": {name: round(float(values.mean()), 5) for name, values in metrics.items()},
        "ranks": result.ranks.astype(int).tolist(),
        "nll": [round(value, 3) for value in nll.tolist()],
    }


if __name__ == "__main__":
    cli.run("sasrec.py", main)
