"""SASRec (Kang & McAuley 2018) on the splits and by the metrics of evaluate.py: python tests/study/sasrec.py --json FILE

Item embedding plus position embedding, a causal transformer (torch's own layers), scores by the same item embedding. Two known
changes make it stronger than in its paper: cross-entropy over all items instead of one negative (Klenitskiy & Vasilev 2023), and norms
before the blocks. It sees what the language models see: windows of `history` + 1 entries, each entry predicted from those before it.
Width and dropout are chosen by the validation targets, and so is the epoch. Its softmax is over the catalogue's titles, so
its negative log-likelihood of a target compares with that of evaluate.py.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
import evaluate  # noqa: E402
from ref import cli, dataset  # noqa: E402
from ref.files import write_json  # noqa: E402

SETTINGS = [{"size": size, "dropout": dropout} for size in (64, 128) for dropout in (0.2, 0.5)]
BATCH, PATIENCE, EPOCHS = 128, 6, 100


class SASRec(nn.Module):
    def __init__(self, titles, history, size, dropout, layers=2, heads=2):
        super().__init__()
        self.items, self.places = nn.Embedding(titles, size), nn.Embedding(history, size)
        block = nn.TransformerEncoderLayer(size, heads, 4 * size, dropout, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(size), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        for embedding in (self.items, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, entries):
        """Scores of all titles behind each entry: int (B, T), padded on the right -> (B, T, titles)."""
        T = entries.shape[1]
        x = self.dropout(self.items(entries) + self.places.weight[:T])
        return self.blocks(x, nn.Transformer.generate_square_subsequent_mask(T), is_causal=True) @ self.items.weight.T


def padded(histories, width):
    """(B, width), what is shorter is filled up on the right, where nobody looks."""
    return torch.tensor(np.stack([np.pad(history, (0, width - len(history))) for history in histories]).astype(np.int64))


def training_batches(data, rng):
    """(shown, next) of an epoch, int (B, history) each; -100: nothing to predict."""
    windows = data.training_windows("titles", rng)
    windows = windows[rng.permutation(len(windows))]
    for begin in range(0, len(windows), BATCH):
        some = [data.entries[start:end] for start, end in zip(windows.starts[begin : begin + BATCH], windows.ends[begin : begin + BATCH])]
        shown = padded([window[:-1] for window in some], data.history)
        following = padded([window[1:] for window in some], data.history)
        following[torch.arange(data.history) >= torch.tensor([len(window) - 1 for window in some])[:, None]] = -100
        yield shown, following


@torch.inference_mode()
def log_probs(model, histories, width):
    """Of all titles behind each history, float32 (users, titles)."""
    out = []
    for begin in range(0, len(histories), 512):
        some = histories[begin : begin + 512]
        last = torch.tensor([len(history) - 1 for history in some])
        out.append(model(padded(some, width))[torch.arange(len(some)), last].log_softmax(-1))
    return torch.cat(out)


def split(windows, data):
    """(histories, targets) of windows."""
    return [data.entries[s : e - 1] for s, e in zip(windows.starts, windows.ends)], data.entries[windows.ends - 1].astype(np.int64)


def fit(data, seed, setting, epochs):
    """(validation loss of each epoch, the model of the best one)."""
    torch.manual_seed(seed)
    model = SASRec(len(data.titles), data.history, **setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    histories, targets = split(data.valid, data)
    curve, best = [], None
    for epoch in range(1, epochs + 1):
        model.train()
        for shown, following in training_batches(data, np.random.default_rng([seed, epoch])):
            loss = F.cross_entropy(model(shown).flatten(0, 1), following.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        curve.append(-log_probs(model, histories, data.history)[range(len(targets)), targets].mean().item())
        if min(curve) == curve[-1]:
            best = copy.deepcopy(model)
        print(f"{setting} epoch {epoch}: validation {curve[-1]:.4f} nats a title", flush=True)
        if epoch - np.argmin(curve) > PATIENCE:
            break
    return curve, best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="one epoch and one setting only, to try the command out")
    parser.add_argument("--json", required=True, metavar="FILE", help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dataset.load(options.data)
    settings, epochs = (SETTINGS[:1], 1) if options.max_steps else (SETTINGS, EPOCHS)
    fits = [(fit(data, options.seed, setting, epochs), setting) for setting in settings]
    (curve, model), setting = min(fits, key=lambda one: min(one[0][0]))
    asked = evaluate.parse_options(["--ranking", "full"])
    users = evaluate.test_users(data, asked)
    scores = log_probs(model, users.histories, data.history).numpy()
    nll = -scores[range(len(users.targets)), users.targets].astype(np.float64)
    found = evaluate.rank_scores("SASRec", users, scores.__getitem__, asked, np.arange(len(data.titles)), nll)
    write_json(options.json, {
        "options": setting, "torch": torch.__version__, "valid": [round(value, 4) for value in curve], "best": min(curve),
        "metrics": {name: round(float(values.mean()), 5) for name, values in found.metrics.items() if name != "NDCG@1"},
        "ranks": found.ranks.astype(int).tolist(), "nll": [round(value, 3) for value in nll.tolist()],
    })  # fmt: skip


if __name__ == "__main__":
    cli.run("sasrec.py", main)
