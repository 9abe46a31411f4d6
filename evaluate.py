"""Rank the next item of every test user, and report how well; `python evaluate.py --help` says how.

Read from top to bottom: which models and data (`main`), how a model ranks (`evaluate_model`), what
is reported (`report_ranking`), and where attention goes instead (`report_attention`). A title is
its number in the catalogue, its text is `data.titles[number]`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ref import cli, recommender
from ref.checkpoints import adapters
from ref.data import dataset
from ref.data.columns import columns_of
from ref.files import check_writable, write_atomically, write_json
from ref.loss import Objective
from ref.overrides import (
    has_settings,
    note_on_defaults,
    notes_on_training,
    scheme_from,
    settings_from,
)
from ref.report import attention, baselines
from ref.report.draw_attention import attention_svg
from ref.report.metrics import rank_and_auc, slices
from ref.report.options import DEFAULT_WEIGHTS, check_options, parse_options
from ref.report.ranking import (
    Ranking,
    Result,
    best_titles,
    evaluate_scores,
    metrics_of_rankings,
    summarize,
    summary_values,
)
from ref.report.tables import attention_table, heading, summary_text, user_text, wrapped
from ref.report.targets import size_text, targets_of
from ref.search.beam import beam_search
from ref.search.decoder import Decoder
from ref.search.exact import title_log_probs
from ref.search.item_states import ItemStates
from ref.training import processes
from ref.trie import build_trie


def main():
    """Rank, compare, print; raises ValueError or FileNotFoundError for what cannot be used."""
    options = parse_options()
    check_options(options)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    with processes.joined(options.device):
        folders = model_folders(options)
        settings = check_models(folders, options)
        check_outputs(options)
        data = load_data(options, folders, settings)
        targets = targets_of(data, options)
        if options.attention:
            report_attention(folders, data, targets, options)
        else:
            softmaxes = sorted({model.softmax for model in settings})
            report_ranking(folders, data, targets, softmaxes, options)


def model_folders(options):
    """The folders of the models, each once and by another name than the baselines have."""
    folders = options.weights
    if not folders:
        folders = [name for name in DEFAULT_WEIGHTS if Path(name, "model.safetensors").exists()]
    if not folders:
        defaults = ", ".join(DEFAULT_WEIGHTS)
        raise FileNotFoundError(
            f"none of {defaults} holds a model; train one or name it with --weights"
        )
    folders = [f"./{folder}" if folder in baselines.NAMES else folder for folder in folders]
    return list(dict.fromkeys(folders))


def check_models(folders, options):
    """The Settings of all models; raises FileNotFoundError or ValueError for a bad folder.

    All are checked before the first one ranks for an hour. No weights are read yet.
    """
    if options.base and not any(map(adapters.is_adapter, folders)):
        raise ValueError("--base has no effect: no folder of --weights holds an adapter")
    settings = []
    for folder in folders:
        model, _, model_settings = load_with_options(folder, options, device="meta")
        if note := note_on_defaults(folder, model_settings, model.scheme):
            processes.say(note)
        settings.append(model_settings)
    return settings


def check_outputs(options):
    """Raise ValueError for an output file that cannot be written."""
    for path in (options.json, options.svg):
        if path and processes.is_first():
            check_writable(path)


def load_data(options, folders, settings):
    """The Dataset, filtered and cut as `settings` say: all of them, or ValueError.

    They are those of the folders, changed by the options (`check_models`). Folders without Settings
    take what the others say.
    """
    stated = [each for folder, each in zip(folders, settings) if has_settings(folder)] or settings
    protocols = {(each.history, each.min_item, each.min_user, each.min_rating) for each in stated}
    if len(protocols) > 1:
        raise ValueError(
            "models trained with other (history, min_item, min_user, min_rating) cannot be "
            f"compared: {sorted(protocols, key=str)}"
        )
    history, min_item, min_user, min_rating = protocols.pop()
    columns = replace(columns_of(options), min_rating=min_rating)
    test_items = options.test_items or min(each.test_items for each in stated)
    for folder, each in zip(folders, settings):
        if each.test_items < test_items and has_settings(folder):
            raise ValueError(
                f"{folder}: was trained with --test-items {each.test_items}, so it has seen "
                f"targets of --test-items {test_items}; train it with that, or evaluate with fewer"
            )
    data = dataset.load(options.data, history, min_item, min_user, test_items, columns)
    notes = [
        note
        for folder, each in zip(folders, settings)
        for note in notes_on_training(folder, each, data)
    ]
    return replace(data, notes=(*data.notes, *notes))


@dataclass(frozen=True)
class RankedBatch:
    """B targets: their Rankings, their NLL (B,), and items of histories left out."""

    rankings: list
    nll: np.ndarray
    dropped: int


def evaluate_model(folder, data, targets, options) -> Result:
    """Rank all targets with the model of a folder."""
    decoder, objective = load_decoder(folder, data.titles, options)
    batches = rank_in_batches(folder, decoder, objective, targets, options)
    note = note_on_dropped(folder, objective.encoder, sum(batch.dropped for batch in batches))
    rankings = [ranking for batch in batches for ranking in batch.rankings]
    metrics = metrics_of_rankings(rankings)
    metrics["NLL"] = np.concatenate([batch.nll for batch in batches])
    titles = decoder.trie.canonical[targets.titles]
    return Result(str(folder), rankings, metrics, titles, note)


def load_decoder(folder, titles, options):
    """The model of a folder for a catalogue: a Decoder, and the Objective that gives the NLL."""
    model, encoder, settings = load_with_options(folder, options, options.device)
    trie = build_trie(encoder, titles)
    item_states = ItemStates(model, encoder, titles) if options.cache_items else None
    decoder = Decoder(model, trie, settings, item_states)
    return decoder, Objective(encoder, trie, titles, settings, "target")


def load_with_options(folder, options, device):
    """(model, PromptEncoder, Settings) of a folder; options go before what the folder says."""
    base = options.base if adapters.is_adapter(folder) else None
    _, saved, _ = adapters.read_config(folder, base)
    scheme, settings = scheme_from(options, saved), settings_from(options, folder)
    dtype = cli.DTYPES[options.dtype]
    return recommender.load(folder, dtype, device, base, scheme, settings)


def rank_in_batches(folder, decoder, objective, targets, options):
    """The RankedBatches of all targets, in order; the processes take turns."""
    size = options.batch_size
    if options.ranking == "sampled":
        size = 1  # each target has candidates of its own
    begins = range(0, len(targets), size)
    batches = {}
    with cli.progress_bar(len(targets), folder, "target", processes.is_first()) as bar:
        for begin in begins[processes.RANK :: processes.WORLD]:
            part = targets[begin : begin + size]
            batches[begin] = rank_batch(decoder, objective, part, options)
            refuse_not_finite(folder, "negative log-likelihood of a target", batches[begin].nll)
            bar.update(min(processes.WORLD * len(part), bar.total - bar.n))
    for others in processes.gather(batches):
        batches |= others
    return [batches[begin] for begin in begins]


def refuse_not_finite(folder, name, values):
    """Raise ValueError for a model that gives no number: nothing of it would mean anything."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"{folder}: the {name} is {values[~np.isfinite(values)][0]}; expected a finite number. "
            "Its weights, its adapter or --temperature is too extreme"
        )


def rank_batch(decoder, objective, targets, options) -> RankedBatch:
    """Rank some targets; ranks and NLL are of the same prompts."""
    longest = decoder.trie.longest  # behind each prompt there is room for any title
    prompts, windows = [], []
    for history, target in zip(targets.histories, targets.titles):
        texts = [objective.titles[title] for title in history]
        prompt = objective.encoder.encode(texts, reserve=longest)
        prompts.append(prompt)
        windows.append(np.append(history[prompt.dropped :], target))
    if options.ranking == "beam":
        rankings = rank_by_beam_search(decoder, prompts, targets, options)
    else:
        rankings = rank_by_exact_scores(decoder, prompts, targets, options)
    nll = target_nll(decoder.model, objective, windows, options.device)
    return RankedBatch(rankings, nll, sum(prompt.dropped for prompt in prompts))


def rank_by_beam_search(decoder, prompts, targets, options):
    """Rankings of the targets among what a beam search returns."""
    canonical = decoder.trie.canonical
    excluded = targets.histories if options.exclude_seen else None
    rankings = []
    recommended = beam_search(decoder, prompts, options.beam_width, excluded)
    for best, target in zip(recommended, canonical[targets.titles]):
        titles = [title for title, _ in best]
        rank = titles.index(target) + 1 if target in titles else np.inf
        rankings.append(Ranking(float(rank), top=best[:5]))
    return rankings


def rank_by_exact_scores(decoder, prompts, targets, options):
    """Rankings of the targets by the scores of all titles, or of one target's candidates."""
    canonical = decoder.trie.canonical
    all_titles = np.unique(canonical)
    if targets.candidates is None:
        candidates, scores = all_titles, title_log_probs(decoder, prompts)
    else:
        (drawn,) = targets.candidates
        candidates = np.unique(canonical[drawn])  # titles of equal tokens are one
        scores = title_log_probs(decoder, prompts, candidates)
    rankings = []
    scores = scores.astype(np.float32)  # what differs by less comes from the order of sums: a tie
    for row, history, target in zip(scores, targets.histories, canonical[targets.titles]):
        if options.exclude_seen:
            row[canonical[history]] = -np.inf
        rank, auc = rank_and_auc(row, target, candidates)
        rankings.append(Ranking(rank, auc, best_titles(row, all_titles)))
    return rankings


@torch.inference_mode()
def target_nll(model, objective, windows, device):
    """Negative log-likelihood of each window's target, in nats, float64 (windows,)."""
    batch = objective.batch(windows, device)
    log_probs = objective.token_log_probs(model, batch).double().cpu().numpy()
    rows = batch.rows.cpu().numpy()
    # tokens without a choice are not in the batch: their log-probability is 0
    return -np.bincount(rows, weights=log_probs, minlength=len(windows))


def report_ranking(folders, data, targets, softmaxes, options):
    """Rank with every model; write the report after each, and print it at the end."""
    counted = []
    for name, scorer in baselines.Baselines(data).scorers().items():
        scores = map(scorer, targets.histories)
        counted.append(evaluate_scores(name, scores, targets, options))
    models = []
    try:
        for folder in folders:
            models.append(evaluate_model(folder, data, targets, options))
            if processes.is_first() and options.json:
                write_ranking(data, targets, [*models, *counted], options)
    finally:  # also where the next model fails
        if processes.is_first() and models:
            print_ranking(data, targets, [*models, *counted], softmaxes, options)


def summary_of(data, targets, results, options):
    """The Summary of Results, with slices by history and by how common the target is."""
    lengths = np.array([len(history) for history in targets.histories])
    counts = data.training_counts()[targets.titles]
    return summarize(results, targets.user_ids, slices(lengths, counts), options.seed)


def write_ranking(data, targets, results, options):
    """Write what --json asks for."""
    summary = summary_of(data, targets, results, options)
    values = description(data, targets, options) | {"titles": len(data.titles)}
    write_json(options.json, values | summary_values(summary, results))


def print_ranking(data, targets, results, softmaxes, options):
    """Print the tables and some users."""
    notes = [result.note for result in results if result.note]
    print("", *heading(data, targets, softmaxes, options), *notes, "", sep="\n")
    print(summary_text(summary_of(data, targets, results, options), options.wide))
    if options.json:
        print(f"\nwrote {options.json}")
    _, first_targets = np.unique(targets.user_ids, return_index=True)
    for number in first_targets[: options.show]:
        print("\n" + user_text(number, targets, results, data.titles))


def description(data, targets, options):
    """What every report for JSON begins with."""
    return {
        "options": vars(options),
        "data": data.source,
        "users": len(np.unique(targets.user_ids)),
        "targets": len(targets),
        "notes": list(data.notes),
    }


def report_attention(folders, data, targets, options):
    """Measure where the attention goes; write --json and --svg after each model, then print."""
    models = {}
    try:
        for folder in folders:
            models[folder] = measure_attention(folder, data, targets, options)
            if processes.is_first():
                write_attention(models, data, targets, options)
    finally:  # also where the next model fails
        if processes.is_first() and models:
            print_attention(models, data, targets, options)


def write_attention(models, data, targets, options):
    """Write what --json and --svg ask for."""
    if options.json:
        values = description(data, targets, options)
        write_json(options.json, values | attention.values_of(models))
    if options.svg:
        write_atomically(options.svg, attention_svg(models).encode())


def print_attention(models, data, targets, options):
    """Print the tables of all models."""
    heading_line = (
        f"{data.source}: attention over the prompts and targets of "
        f"{size_text(targets.user_ids, 'test users')}; means over heads"
    )
    notes = [line for note in data.notes for line in wrapped(note)]
    print("", *wrapped(heading_line), *notes, "", sep="\n")
    for name, measured in models.items():
        print(attention_table(name, measured, options.wide))
    for path in (options.json, options.svg):
        if path:
            print(f"wrote {path}")


def measure_attention(folder, data, targets, options):
    """Where the attention of a model goes, over the prompts and targets of the test users."""
    model, encoder, _ = load_with_options(folder, options, options.device)
    prompts = []
    for history, target in zip(targets.histories, targets.titles):
        texts = [data.titles[title] for title in history]
        prompts.append(encoder.encode(texts, data.titles[target]))
    if note := note_on_dropped(folder, encoder, sum(prompt.dropped for prompt in prompts)):
        processes.say(note)
    measured = attention.measure(model, with_progress(prompts, folder))
    refuse_not_finite(folder, "share of attention", measured.share)
    return measured


def with_progress(prompts, folder):
    """Yield the prompts, and show how many are done."""
    with cli.progress_bar(len(prompts), folder, "prompt", processes.is_first()) as bar:
        for prompt in prompts:
            yield prompt
            bar.update()


def note_on_dropped(name, encoder, dropped):
    """A sentence on items of histories that did not fit into prompts, "" if all did."""
    if not dropped:
        return ""
    return (
        f"{name}: {dropped} items of histories did not fit into {encoder.max_length} tokens "
        "and were left out"
    )


if __name__ == "__main__":
    cli.run(processes.name_of("evaluate.py"), main)
