"""Train a HatLLM recommender; `python train.py --help` says how.

Read from top to bottom: what a training needs (`Run`), how it is prepared, the training loop
(`train_epochs`), and `train`, which puts them together. Without options it trains a new model of
four layers (IN OR OR CR) on the embedded MovieLens, in the layout "lines" (a title a line), with
the loss "titles" and the softmax "catalogue" (ref/loss.py).
"""

import argparse
import math
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ref import cli
from ref.checkpoints import adapters, save_model
from ref.checkpoints.weights import hf_parameters
from ref.data import dataset
from ref.data.columns import columns_of
from ref.files import uninterrupted
from ref.llama import Llama
from ref.loss import Objective
from ref.training import processes, state
from ref.training.batches import batches_of_similar_length, shares_of_step, titles_of_windows
from ref.training.folder import (
    close_folder,
    locked,
    open_folder,
    refuse_a_lost_model,
    refuse_a_used_folder,
)
from ref.training.model import is_autocast, lora_settings, prepare_model
from ref.training.objectives import prepare_objectives
from ref.training.options import parse_options


@dataclass
class Run:
    """All that the loop works with.

    data: data.items holds numbers of titles, one user after another. A window is a range of it, a
    history and, last, its target; Windows (ref/data/dataset.py) are the starts and ends of some.
    objective: what is trained; it holds the encoder of prompts and the settings. target_objective:
    what validation measures, on `validation`, the titles of its windows. nll: the model with its
    loss, a module that gives the summed nats of a batch.
    """

    options: argparse.Namespace
    data: dataset.Dataset
    model: Llama
    objective: Objective
    target_objective: Objective
    validation: list
    nll: torch.nn.Module
    optimizer: torch.optim.Optimizer


class NegativeLogLikelihood(torch.nn.Module):
    """The summed negative log-likelihood of the predicted tokens of a batch, in nats.

    A module, because DistributedDataParallel and FSDP wrap modules.
    """

    def __init__(self, model, options):
        super().__init__()
        self.model = model
        self.device_type = torch.device(options.device).type
        self.autocast = is_autocast(options)

    def forward(self, objective, batch):
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.autocast):
            return objective.summed_nll(self.model, batch)


def prepare(options, data) -> Run:
    """Model, objectives and optimizer, before the first step."""
    model, encoder, settings = prepare_model(options, data)
    if not processes.is_first():  # weights are drawn alike in all processes, dropout is not
        seed = np.random.default_rng([options.seed, processes.RANK]).integers(2**63)
        torch.manual_seed(int(seed))
    objective, target_objective = prepare_objectives(options, data, encoder, settings)
    processes.say(
        f"model: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"vocabulary {model.config.vocab_size}, layers {' '.join(model.kinds)}, "
        f"layout {settings.layout.name}, "
        f"loss {objective.loss}, softmax {settings.softmax}"
    )
    nll = processes.data_parallel(
        NegativeLogLikelihood(model, options), model.layers, options.shard, options.device
    )
    return Run(
        options,
        data,
        model,
        objective,
        target_objective,
        validation=titles_of_windows(data.valid[: options.valid_limit], data),
        nll=nll,
        optimizer=make_optimizer(nll.parameters(), options),
    )


def make_optimizer(parameters, options):
    """AdamW; weight decay on matrices, not on norms and biases."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), fused=True)


def learning_rate(step, total, options):
    """Linear warm-up to the peak, then a cosine down to a hundredth of it.

    The warm-up takes half of the training at most.
    """
    warmup = min(options.warmup, total // 2)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    fraction = (step - warmup) / max(total - warmup, 1)  # of the steps after the warm-up
    return options.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * fraction)) / 2)


def train_epochs(run, progress):
    """The training loop.

    A step takes the windows of one batch, in one Share (ref/training/batches.py) or in several, up
    to --accumulate in each process: share.scale makes their gradients add up to that of the mean
    loss. progress counts steps and epochs (ref/training/state.py). Its tally adds up the losses of
    an epoch; `close_epoch` makes a record of them and empties it. Into --out go states, a line of
    the log for each epoch, and the best model yet.
    """
    options, optimizer, tally = run.options, run.optimizer, progress.tally
    total = progress.total
    say_if_warmup_is_shortened(options.warmup, total)
    with cli.progress_bar(total, options.out, "step", processes.is_first(), progress.step) as bar:
        while not progress.is_finished(options.patience):
            for windows in remaining_batches(run, progress):
                window_titles = titles_of_windows(windows, run.data)
                shares, num_predicted = shares_of_step(window_titles, run.objective, options)
                tally.begin_step(num_predicted)
                for share in shares:
                    nats = run.nll(run.objective, share.batch)  # NegativeLogLikelihood, above
                    (nats * share.scale).backward()  # gradients add up
                    tally.add(share, nats.item())
                set_learning_rate(optimizer, learning_rate(progress.step, total, options))
                torch.nn.utils.clip_grad_norm_(run.nll.parameters(), options.clip)
                optimizer.step()
                optimizer.zero_grad()
                progress.step += 1
                bar.set_postfix_str(f"loss {tally.recent_loss():.3f}", refresh=False)
                bar.update()
                if progress.step % options.state_every == 0:
                    state.write_state(options.out, run.model, optimizer, progress)
            record = progress.close_epoch()
            record["valid"] = validate(run)
            refuse_a_diverged_training(record, progress)
            say_epoch(record, run.objective.loss)
            if progress.is_best(record):
                keep_best_model(run, progress, record)
            progress.last = record  # the epoch is done: progress.epoch is one higher
            state.write_state(options.out, run.model, optimizer, progress)
            state.add_to_log(options.out, record)  # last: it says that all else is written


def planned_steps(run):
    """How many steps the training takes: --max-steps, or --epochs times those of epoch 1."""
    return run.options.max_steps or run.options.epochs * len(shuffled_batches(run, epoch=1))


def say_if_warmup_is_shortened(warmup, total):
    if warmup > total // 2:
        processes.say(
            f"--warmup {warmup} is more than half of the {total} steps of this training: "
            f"{total // 2} are used"
        )


def remaining_batches(run, progress):
    """The batches of this epoch that are not trained on yet."""
    num_done = progress.tally.num_steps
    num_left = progress.total - progress.step  # --max-steps may end within an epoch
    return shuffled_batches(run, progress.epoch + 1)[num_done : num_done + num_left]


def shuffled_batches(run, epoch):
    """The windows of an epoch in batches, in an order drawn from --seed and the epoch."""
    rng = np.random.default_rng([run.options.seed, epoch])
    windows = run.data.training_windows(run.objective.loss, rng)
    if not len(windows):
        raise ValueError(f"{run.data.source}: no user has enough items for a training window")
    return batches_of_similar_length(windows, run.data, run.objective, run.options.batch_size, rng)


def set_learning_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def validate(run):
    """Mean negative log-likelihood of the validation targets, in nats a title.

    About 64 windows at a time in each process.
    """
    run.nll.eval()
    nats = num_titles = 0
    rounds = math.ceil(len(run.validation) / (64 * processes.WORLD))
    for window_titles, is_real in processes.shares(run.validation, rounds):
        batch = run.target_objective.batch(window_titles, run.options.device)
        batch_nats = run.nll(run.target_objective, batch).item()  # sharded: all have to take part
        if is_real:
            nats += batch_nats
            num_titles += batch.num_predicted
    run.nll.train()
    nats, num_titles = processes.sums([nats, num_titles])
    return nats / num_titles


def refuse_a_diverged_training(record, progress):
    """Raise ValueError where validation gives no number: the model of that epoch is not kept."""
    if not math.isfinite(record["valid"]):
        raise ValueError(
            f"the training has diverged: at step {record['step']} its loss is {record['train']} "
            f"and that of validation {record['valid']}; use a smaller --lr. The folder holds "
            f"{progress.model_text}"
        )


def say_epoch(record, loss):
    if processes.is_first():
        unit = "token" if loss == "all" else "title"
        tqdm.write(
            "epoch {epoch}, step {step} of {of}: training loss {train:.3f} nats a {unit}, "
            "validation {valid:.3f} nats a title, "
            "{tokens_per_second:,} tokens a second".format(**record, unit=unit)
        )


def keep_best_model(run, progress, record):
    """Write the model, or its adapter, to --out, and its record to `progress.best`."""
    options, model = run.options, run.model
    is_adapter = options.lora_rank is not None
    parameters = adapters.adapter_parameters(model) if is_adapter else hf_parameters(model)
    parameters = processes.whole(parameters)  # all processes take part
    with uninterrupted():  # Ctrl-C comes before both, file and progress.best, or after them
        if processes.is_first() and is_adapter:
            settings = lora_settings(options)
            adapters.save(model, options.out, options.weights, settings, parameters)
        elif processes.is_first():
            save_model(model, options.out, parameters)
        progress.best = record


def train(options):
    """Train, write model and log to --out; returns the exit code.

    Raises ValueError for data or models that cannot be used.
    """
    if options.resume and state.finished(options.out):
        refuse_a_lost_model(options.out)
        processes.say(
            f"{options.out}: this training is finished; to train its model further: "
            f"--weights {options.out} --out OTHER"
        )
        return 0
    if not options.resume:
        refuse_a_used_folder(options.out)
    set_up_torch(options.threads)
    data = load_data(options)
    run = prepare(options, data)
    progress = open_folder(run)
    try:
        if progress.total is None:  # a new training; a resumed one keeps its plan
            progress.total = planned_steps(run)
        train_epochs(run, progress)
    except KeyboardInterrupt:
        processes.say(
            f"\nstopped; {options.out} holds {progress.model_text}; --resume {options.out} goes on"
        )
        return 130
    close_folder(run, progress)
    return 0


def set_up_torch(threads):
    """Make a training repeatable, to the byte, on a given number of threads."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # filling fresh memory costs a tenth of the time; no code here reads what it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False


def load_data(options):
    """The Dataset of --data; when resuming, refused if it is not what the training began with."""
    data = dataset.load(
        options.data,
        options.history,
        options.min_item,
        options.min_user,
        options.test_items,
        columns_of(options),
    )
    processes.say(
        f"data: {data.source}: {len(data.titles)} titles, {len(data.train)} training sequences, "
        f"{len(data.valid)} validation and {len(data.test)} test targets",
        *(f"      {note}" for note in data.notes),
    )
    if options.resume:
        state.refuse_other_data(options.out, data)
    return data


def main(arguments=None):
    """Parse, check, train; returns the exit code."""
    options = parse_options(arguments)
    with processes.joined(options.device), locked(options.out):
        return train(options)


if __name__ == "__main__":
    cli.run(processes.name_of("train.py"), main)
