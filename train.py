"""Train a HatLLM recommender, read from top to bottom.

python train.py                      the embedded MovieLens, a 4-layer model, into runs/movielens
python train.py --data FOLDER        your own interactions (README, "Your own data")
python train.py --weights FOLDER     start from a Hugging Face Llama folder
python train.py --resume FOLDER      go on with a training that was stopped or killed
torchrun --nproc-per-node=N train.py ...         the same in N processes (README, "Many processes")
"""

import argparse
import itertools
import json
import math
import os
import platform
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from tqdm import tqdm

from ref import cli, lora
from ref.checkpoints import adapters, load_model, save_model
from ref.checkpoints.config import config_values, parse_config
from ref.checkpoints.tokenizers import check_vocabulary, read_tokenizer
from ref.data import dataset
from ref.files import parse_json, read_text, uninterrupted
from ref.llama import Llama
from ref.loss import Objective
from ref.masks import MaskScheme
from ref.prompt import Layout, PromptEncoder
from ref.recommender import build_trie
from ref.settings import Settings, read_settings
from ref.tokenizer import Tokenizer
from ref.training import processes
from ref.training.batches import batches_of_similar_length, entries_of, training_targets
from ref.training.processes import over_processes, own_parts, shared
from ref.training.state import (
    fingerprint,
    finished,
    read_state,
    refuse_other_data,
    start_log,
    write_state,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def parse_options(arguments=None):
    """The options of the command line, or with --resume those of the training; raises ValueError naming one that makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)")
    add(
        "--out",
        default="runs/movielens",
        metavar="FOLDER",
        help="where the model goes (default: %(default)s)",
    )
    add("--weights", metavar="FOLDER", help="start from this model instead of random weights")
    add(
        "--base",
        metavar="FOLDER",
        help="base model, if --weights is a LoRA adapter (default: what it says)",
    )
    add(
        "--resume",
        metavar="FOLDER",
        help="go on with the training in this folder, with its options (but for --threads)",
    )
    add("--intra-layers", type=int, help="IN layers (default: 1, or what --weights says)")
    add("--cross-layers", type=int, help="CR layers (default: 1, or what --weights says)")
    add(
        "--cross-self",
        action=argparse.BooleanOptionalAction,
        help="does a token see itself in CR layers? (yes)",
    )
    add(
        "--text",
        choices=("visible", "isolated"),
        help="what items see of text in IN layers (visible)",
    )
    add(
        "--delimiters",
        choices=("item", "text"),
        help="what the delimiters of an entry belong to (item)",
    )
    add("--target", choices=("item", "text"), help="what the target is to the masks (item)")
    add(
        "--loss",
        choices=("target", "all", "titles"),
        help="tokens that are predicted (default: titles, or target)",
    )
    add(
        "--softmax",
        choices=("catalogue", "full"),
        default="catalogue",
        help="alternatives of a token",
    )
    add("--temperature", type=float, default=1.0, help="divides the logits (default: %(default)s)")
    add(
        "--layout",
        help="lines, instruction, or a JSON file (default: lines, or what --weights says)",
    )
    add(
        "--history",
        type=int,
        default=10,
        help="entries shown before a target (default: %(default)s)",
    )
    add(
        "--min-item",
        type=int,
        default=10,
        help="fewest interactions of an item (default: %(default)s)",
    )
    add(
        "--min-user",
        type=int,
        default=5,
        help="fewest interactions of a user (default: %(default)s)",
    )
    add(
        "--epochs",
        type=int,
        default=12,
        help="passes over the training windows (default: %(default)s)",
    )
    add("--max-steps", type=int, help="stop after so many steps")
    add("--valid-limit", type=int, help="validate on the first so many users only")
    add("--batch-size", type=int, default=32, help="windows a step (default: %(default)s)")
    add(
        "--accumulate",
        type=int,
        default=1,
        help="parts that a step is computed in, to save memory (default: %(default)s)",
    )
    add("--lr", type=float, default=4e-3, help="peak learning rate (default: %(default)s)")
    add("--warmup", type=int, default=100, help="steps until the peak (default: %(default)s)")
    add("--weight-decay", type=float, default=0.1, help="of matrices (default: %(default)s)")
    add("--dropout", type=float, default=0.2, help="(default: %(default)s)")
    add(
        "--clip",
        type=float,
        default=1.0,
        help="largest norm of the gradient (default: %(default)s)",
    )
    add(
        "--vocabulary",
        type=int,
        default=4000,
        help="tokens of a new tokenizer (default: %(default)s)",
    )
    add("--layers", type=int, default=4, help="of a new model (default: %(default)s)")
    add("--hidden-size", type=int, default=64, help="of a new model (default: %(default)s)")
    add("--heads", type=int, default=4, help="of a new model (default: %(default)s)")
    add("--lora-rank", type=int, help="train a LoRA adapter of this rank and freeze --weights")
    add(
        "--lora-alpha",
        type=float,
        help="the update is scaled by alpha / rank (default: twice the rank)",
    )
    add(
        "--lora-dropout",
        type=float,
        default=0.05,
        help="on what the adapter reads (default: %(default)s)",
    )
    add(
        "--lora-targets",
        default="q_proj,v_proj",
        help="matrices that get an update (default: %(default)s)",
    )
    add(
        "--checkpoint-activations",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep fewer activations, compute them twice",
    )
    add(
        "--shard",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="divide the model over the processes of torchrun, instead of a copy in each",
    )
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add(
        "--threads",
        type=int,
        help=f"of the CPU (default: {torch.get_num_threads()}, or as before with --resume)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="bfloat16: frozen weights in bfloat16 with LoRA, else autocast over float32 weights (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.resume:
        wanted = {
            name for name, value in vars(options).items() if value != parser.get_default(name)
        }
        if wanted - {"resume", "threads"}:
            raise ValueError(
                f"--resume takes all options but --threads from {options.resume}; drop --{min(wanted - {'resume', 'threads'})}"
            )
        return resumed(options, parser)
    options.threads = options.threads or torch.get_num_threads()
    return checked(options)


def resumed(options, parser):
    """The options of the training in --resume, as the first line of its log has them."""
    path = Path(options.resume) / "log.jsonl"
    first = parse_json(read_text(path).partition("\n")[0], f"{path}, line 1")
    before = first.get("options")
    known = (
        isinstance(first.get("data"), dict)
        and "fingerprint" in first["data"]
        and type(first.get("processes")) is int
    )
    if not known or not isinstance(before, dict) or set(before) != set(vars(options)):
        raise ValueError(
            f"{path}: its first line is not one that this train.py wrote; the training cannot be resumed"
        )

    def refuse(message):
        raise ValueError(f"{path}, line 1: {message}") from None

    parser.error = refuse
    before = parser.parse_args(
        [word for name, value in before.items() for word in as_arguments(name, value)]
    )
    try:
        checked(before)
    except ValueError as error:
        refuse(error)
    for what, now, then in (
        ("threads", options.threads or before.threads, before.threads),
        ("processes", processes.WORLD, first.get("processes")),
    ):
        if now != then:
            print(f"{now} {what} instead of {then}: the weights will not be the same to the byte")
    before.resume, before.out, before.threads = (
        options.resume,
        options.resume,
        options.threads or before.threads,
    )
    return checked(before)


def as_arguments(name, value):
    """An option as one writes it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [] if value is None else [f"--{flag}={value}"]


def checked(options):
    """The options; raises ValueError naming the first that makes no sense."""
    for name in (
        "epochs",
        "max_steps",
        "valid_limit",
        "batch_size",
        "accumulate",
        "lr",
        "lora_rank",
        "lora_alpha",
        "clip",
        "layers",
        "hidden_size",
        "heads",
        "threads",
    ):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected a positive number")
    for name, most in (
        ("warmup", 2**31),
        ("weight_decay", 2**31),
        ("dropout", 1),
        ("lora_dropout", 1),
        ("seed", 2**63),
    ):
        if not 0 <= getattr(options, name) < most:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}; expected 0 or more, below {most}"
            )
    cores = os.cpu_count() or 1
    if options.threads > 16 * cores:
        raise ValueError(
            f"--threads is {options.threads}; expected at most {16 * cores} on {cores} cores"
        )
    if options.lora_rank and not options.weights:
        raise ValueError(
            "--lora-rank trains an adapter of an existing model; name it with --weights"
        )
    if options.shard and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "--shard divides a model over processes; start them with torchrun --nproc-per-node=N train.py"
        )
    options.lora_alpha = options.lora_alpha or (
        2.0 * options.lora_rank if options.lora_rank else None
    )
    cli.check_device(options.device)
    processes.start(options.device)
    return options


def scheme_from(options, saved=MaskScheme(intra_layers=1, cross_layers=1)):
    """The MaskScheme of the command line; what it does not say is as in `saved`."""
    given = {field.name: getattr(options, field.name) for field in fields(MaskScheme)}
    return replace(saved, **{name: value for name, value in given.items() if value is not None})


def new_config(options, vocab_size):
    """A Llama of the asked size; the MLP is 8/3 as wide as the rest, rounded up to a multiple of 16."""
    return parse_config(
        {
            "vocab_size": vocab_size,
            "hidden_size": options.hidden_size,
            "intermediate_size": math.ceil(options.hidden_size * 8 / 3 / 16) * 16,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "tie_word_embeddings": True,
            "max_position_embeddings": 1024,
        },
        "the model asked for",
    )


def prepare(options, data):
    """(model, encoder, settings): from --weights, or a new tokenizer and random weights."""
    folder = options.weights
    if folder:
        config, saved, _ = adapters.read_config(folder, options.base)
        tokenizer = read_tokenizer(folder, options.base)
        check_vocabulary(tokenizer, config)
        layout = Layout.load(options.layout) if options.layout else read_settings(folder).layout
        scheme = scheme_from(options, saved)
    else:
        scheme, layout = scheme_from(options), Layout.load(options.layout or "lines")
        scheme.kinds(options.layers)
        shown = np.flatnonzero(data.training_counts())
        tokenizer = Tokenizer.train([data.titles[title] for title in shown], options.vocabulary)
        config = new_config(options, tokenizer.vocab_size)
    settings = Settings(
        layout,
        options.softmax,
        options.temperature,
        options.history,
        options.min_item,
        options.min_user,
    )
    torch.manual_seed(options.seed)
    dtype = torch.float32 if autocast(options) else DTYPES[options.dtype]
    if folder:
        model = load_model(
            folder, dtype, options.device, scheme, options.base, dropout=options.dropout
        )
        if options.lora_rank:
            if adapters.base_of(folder, options.base) != folder:
                raise ValueError(
                    f"{folder} is an adapter already; train without --lora-rank to go on from the merged model"
                )
            lora.add(
                model,
                options.lora_rank,
                options.lora_alpha,
                options.lora_dropout,
                options.lora_targets.split(","),
            )
    else:
        model = Llama(config, scheme, dropout=options.dropout).to(options.device, dtype)
    model.checkpoint_activations = options.checkpoint_activations
    return model, PromptEncoder(tokenizer, layout, scheme, config.max_position_embeddings), settings


def autocast(options):
    """bfloat16 means float32 weights and bfloat16 matrix products, unless the weights are frozen (LoRA)."""
    return options.dtype == "bfloat16" and not options.lora_rank


def save(model, options):
    """Write the model, or its adapter, to --out."""
    if options.lora_rank:
        sizes = (
            options.lora_rank,
            options.lora_alpha,
            options.lora_dropout,
            options.lora_targets.split(","),
        )
        adapters.save(model, options.out, options.weights, *sizes)
    else:
        save_model(model, options.out)


def objectives(options, data, encoder, settings):
    """The Objective to train by, and that of validation; ValueError, not hours later, if the longest target and the entry before do not fit."""
    loss, trie = (
        options.loss or ("titles" if settings.layout.same_everywhere else "target"),
        build_trie(encoder, data.titles),
    )
    objective, target_only = (
        Objective(encoder, trie, data.titles, settings, tokens) for tokens in (loss, "target")
    )
    places = np.append(data.valid[: options.valid_limit].ends - 1, training_targets(data, loss))
    if len(places):
        tokens = objective.title_tokens[data.entries]
        longest = places[(tokens[places] + tokens[places - 1]).argmax()]
        target_only.batch([data.entries[longest - 1 : longest + 1]])
    return objective, target_only


class NegativeLogLikelihood(torch.nn.Module):
    """Of all predicted tokens of a batch, in nats: the module whose gradients several processes share."""

    def __init__(self, model, options):
        super().__init__()
        self.model, self.autocast = (
            model,
            {"device_type": torch.device(options.device).type, "enabled": autocast(options)},
        )

    def forward(self, objective, batch):
        with torch.autocast(dtype=torch.bfloat16, **self.autocast):
            return -objective.token_log_probs(self.model, batch).sum()


@torch.no_grad()
def validate(nll, objective, entries, device):
    """Mean negative log-likelihood of the validation targets, in nats a title; some 64 windows at a time."""
    nll.eval()
    sums = []
    for windows, weight in own_parts(entries, math.ceil(len(entries) / (64 * processes.WORLD))):
        batch = objective.batch(windows, device)
        sums.append((weight * nll(objective, batch).item(), weight * batch.units))
    nll.train()
    nats, titles = over_processes([sum(column) for column in zip(*sums)])
    return nats / titles


def learning_rate(step, total, options):
    """Linear warm-up to the peak, then a cosine down to a hundredth of it."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    progress = (step - options.warmup) / max(total - options.warmup, 1)
    return options.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def make_optimizer(parameters, options):
    """AdamW; weight decay on matrices, not on norms and biases."""
    trained = [p for p in parameters if p.requires_grad]
    matrices, vectors = ([p for p in trained if (p.dim() > 1) is wide] for wide in (True, False))
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), fused=True)


def step_gradients(options, nll, objective, entries):
    """Add to the gradients those of the mean nats a title of a step's windows.

    Returns nats, tokens and dropped history entries of this process, and the titles of all.
    """
    rounds = min(options.accumulate, math.ceil(len(entries) / processes.WORLD))
    parts = [
        (objective.batch(windows, options.device), weight)
        for windows, weight in own_parts(entries, rounds)
    ]
    (titles,) = over_processes([sum(weight * batch.units for batch, weight in parts)])
    nats = tokens = dropped = 0
    for batch, weight in parts:
        loss = nll(objective, batch)
        (
            loss * weight * processes.WORLD / titles
        ).backward()  # times WORLD: the processes' gradients will be averaged
        nats, tokens, dropped = (
            nats + weight * loss.item(),
            tokens + weight * batch.real_tokens,
            dropped + weight * batch.dropped,
        )
    return nats, tokens, dropped, titles


def epochs(options, data, nll, objective, optimizer=None, done=None):
    """Train, and yield after each epoch what there is to say about it. done: what was said last, if some are trained already."""
    optimizer, since, tokens = (
        optimizer or make_optimizer(nll.parameters(), options),
        time.perf_counter(),
        0,
    )
    done = done or {"epoch": 0, "step": 0, "of": options.max_steps, "dropped": 0}
    step, total, dropped = done["step"], done["of"], done["dropped"]
    if total and step >= total:
        return
    with tqdm(disable=processes.RANK > 0 or None, unit="step", initial=step) as bar:
        for epoch in itertools.count(done["epoch"] + 1):
            rng = np.random.default_rng([options.seed, epoch])
            windows = data.training_windows(objective.loss, rng)
            if not len(windows):
                raise ValueError(f"{data.source}: no user has enough entries for a training window")
            batches = batches_of_similar_length(windows, data, objective, options.batch_size, rng)
            if total is None:
                total = options.epochs * len(batches)
            bar.total = total
            steps = []  # of each: nats, tokens and dropped entries of this process; titles of all
            for chosen in batches[: total - step]:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, total, options)
                steps.append(step_gradients(options, nll, objective, entries_of(chosen, data)))
                torch.nn.utils.clip_grad_norm_(nll.parameters(), options.clip)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                bar.update()
                nats, *_, titles = map(sum, zip(*steps[-100:]))
                bar.set_postfix_str(f"loss {processes.WORLD * nats / titles:.3f}", refresh=False)
            *own, titles = zip(*steps)
            losses, read, left_out = map(over_processes, own)
            tokens, dropped = tokens + sum(read), dropped + sum(left_out)
            if not math.isfinite(sum(losses)):
                raise ValueError(
                    f"the training loss is {sum(losses)} at step {step}; try a smaller --lr"
                )
            rate = round(tokens / (time.perf_counter() - since))
            by_ten = [
                sum(losses[i : i + 10]) / sum(titles[i : i + 10]) for i in range(0, len(losses), 10)
            ]
            yield {
                "epoch": epoch,
                "step": step,
                "of": total,
                "train": sum(losses) / sum(titles),
                "tokens_per_second": rate,
                "dropped": dropped,
                "train_by_ten_steps": by_ten,
            }
            if step >= total:
                return


def first_line(options, data, model, loss):
    """What is needed to run this training again."""
    return {
        "options": vars(options),
        "processes": processes.WORLD,
        "loss": loss,
        "scheme": vars(model.scheme),
        "config": config_values(model.config),
        "data": {
            "source": data.source,
            "titles": len(data.titles),
            "entries": len(data.entries),
            "fingerprint": fingerprint(data),
        },
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "sentencepiece": sentencepiece.__version__,
        "machine": platform.platform(),
    }


def train(options):
    """Train, write model and log to --out, and return the exit code; raises ValueError for data or models that cannot be used."""
    out = Path(options.out)
    if not options.resume and (
        (out / "model.safetensors").exists() or (out / "adapter_model.safetensors").exists()
    ):
        raise ValueError(f"{out} already holds a model; choose another --out, or remove it")
    if options.resume and finished(out):
        print(f"{out}: this training is finished")
        return 0
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # costs a tenth of the time; nothing here reads any
    )
    data = dataset.load(options.data, options.history, options.min_item, options.min_user)
    print(
        f"data: {data.source}: {len(data.titles)} titles, {len(data.train)} training sequences, "
        f"{len(data.valid)} validation and {len(data.test)} test targets",
        *data.notes,
        sep="\n      ",
    )
    if options.resume:
        refuse_other_data(out, data)
    model, encoder, settings = prepare(options, data)
    if processes.RANK:  # the same weights everywhere, but each process drops out its own
        torch.manual_seed(
            int(np.random.default_rng([options.seed, processes.RANK]).integers(2**63))
        )
    objective, target_only = objectives(options, data, encoder, settings)
    validation = entries_of(data.valid[: options.valid_limit], data)
    print(
        f"model: {sum(p.numel() for p in model.parameters()):,} parameters, layers "
        f"{' '.join(model.scheme.kinds(len(model.layers)))}, layout {settings.layout.name}, loss {objective.loss}, "
        f"softmax {settings.softmax}"
    )

    for path in (
        {*out.glob("*.part"), *(() if options.resume else out.glob("state-?.*"))}
        if processes.RANK == 0
        else ()
    ):
        path.unlink()  # half files, and states of a training that this one replaces
    nll = shared(NegativeLogLikelihood(model, options), model.layers, options)
    optimizer = make_optimizer(nll.parameters(), options)
    epoch, best = read_state(out, model, optimizer) if options.resume else (None, None)
    start_log(out, first_line(options, data, model, objective.loss), epoch)
    encoder.tokenizer.save(out)
    settings.save(out)
    if options.resume:
        print(
            f"going on after epoch {epoch['epoch']}, step {epoch['step']} of {epoch['of']}"
            if epoch
            else "no state to go on from: from the start"
        )
    with open(os.devnull if processes.RANK else out / "log.jsonl", "a", encoding="utf-8") as log:
        try:
            for epoch in epochs(options, data, nll, objective, optimizer, epoch):
                epoch["valid"] = validate(nll, target_only, validation, options.device)
                tqdm.write(
                    "epoch {epoch}, step {step} of {of}: training loss {train:.3f}, validation {valid:.3f} nats "
                    "a title, {tokens_per_second:,} tokens a second".format(**epoch)
                )
                if best is None or epoch["valid"] < best["valid"]:
                    with uninterrupted():
                        save(model, options)
                        best = epoch
                write_state(out, model, optimizer, epoch, best)
                print(json.dumps(epoch), file=log, flush=True)
        except KeyboardInterrupt:
            kept = (
                f"{out} holds the model of step {best['step']}"
                if best
                else f"{out} holds no model yet"
            )
            print(f"\nstopped; {kept}; --resume {out} goes on", flush=True)
            return 130
    for path in out.glob("state-?.*") if processes.RANK == 0 else ():
        path.unlink()
    print(f"best validation: {best['valid']:.3f} nats a title, at step {best['step']}; wrote {out}")
    if epoch["dropped"]:
        print(
            f"{epoch['dropped']} history entries were left out of prompts longer than {encoder.max_length} tokens"
        )
    return 0


if __name__ == "__main__":
    cli.run("train.py", lambda: train(parse_options()))
