"""Rank the next item of every test user, and report how well; `python evaluate.py --help` says how.

Read from top to bottom: what is ranked (`main`), how a model ranks it (`evaluate_model`), what is
reported (`report_ranking`). A title is its number in the catalogue, its text is
`data.titles[number]`. Which models and data may be compared: ref/report/models.py; what
--attention does instead of ranking: ref/report/attention_report.py.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ref import cli
from ref.files import write_json
from ref.loss import Objective
from ref.report.attention_report import report_attention
from ref.report.baselines import Baselines
from ref.report.metrics import rank_and_auc, slices
from ref.report.models import (
    check_outputs,
    load_data,
    load_with_options,
    model_folders,
    note_on_dropped,
    refuse_not_finite,
    settings_of_models,
)
from ref.report.options import check_options, parse_options
from ref.report.ranking import (
    Ranking,
    Result,
    best_titles,
    evaluate_scores,
    metrics_of_rankings,
    summarize,
    summary_values,
)
from ref.report.tables import heading, summary_text, user_text
from ref.report.targets import description, targets_of
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
        settings = settings_of_models(folders, options)
        check_outputs(options)
        data = load_data(options, folders, settings)
        targets = targets_of(data, options)
        if options.attention:
            report_attention(folders, data, targets, options)
        else:
            report_ranking(folders, data, targets, options)


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
    true_titles = decoder.trie.canonical[targets.titles]
    softmax = objective.settings.softmax
    return Result(str(folder), rankings, metrics, true_titles, note, softmax)


def load_decoder(folder, titles, options):
    """The model of a folder for a catalogue: a Decoder, and the Objective that gives the NLL."""
    model, encoder, settings = load_with_options(folder, options, options.device)
    trie = build_trie(encoder, titles)
    item_states = ItemStates(model, encoder, titles) if options.cache_items else None
    decoder = Decoder(model, trie, settings, item_states)
    return decoder, Objective(encoder, trie, titles, settings, "target")


def rank_in_batches(folder, decoder, objective, targets, options):
    """The RankedBatches of all targets, in order; each process ranks every WORLD-th batch."""
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
            of_all = processes.WORLD * len(part)  # the others are about as far
            bar.update(min(of_all, bar.total - bar.n))
    for others in processes.gather(batches):
        batches |= others
    return [batches[begin] for begin in begins]


def rank_batch(decoder, objective, targets, options) -> RankedBatch:
    """Rank some targets; ranks and NLL are of the same prompts."""
    longest = decoder.trie.longest  # after each prompt there is room for any title
    prompts, window_titles = [], []
    for history, target in zip(targets.histories, targets.titles):
        texts = [objective.titles[title] for title in history]
        prompt = objective.encoder.encode(texts, reserve=longest)
        prompts.append(prompt)
        window_titles.append(np.append(history[prompt.dropped :], target))
    if options.ranking == "beam":
        rankings = rank_by_beam_search(decoder, prompts, targets, options)
    else:
        rankings = rank_by_exact_scores(decoder, prompts, targets, options)
    nll = target_nll(decoder.model, objective, window_titles, options.device)
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
    # rounded: what differs by less differs by the order of additions alone, and is a tie
    scores = scores.astype(np.float32)
    for row, history, target in zip(scores, targets.histories, canonical[targets.titles]):
        if options.exclude_seen:
            row[canonical[history]] = -np.inf
        rank, auc = rank_and_auc(row, target, candidates)
        rankings.append(Ranking(rank, auc, best_titles(row, all_titles)))
    return rankings


@torch.inference_mode()
def target_nll(model, objective, window_titles, device):
    """Negative log-likelihood of each window's target, in nats, float64 (windows,)."""
    batch = objective.batch(window_titles, device)
    log_probs = objective.token_log_probs(model, batch).double().cpu().numpy()
    rows = batch.rows.cpu().numpy()
    # tokens without a choice are not in the batch: their log-probability is 0
    return -np.bincount(rows, weights=log_probs, minlength=len(window_titles))


def report_ranking(folders, data, targets, options):
    """Rank with every model; write the report after each, and print it at the end."""
    baselines = []
    for name, scorer in Baselines(data).scorers().items():
        scores = map(scorer, targets.histories)
        baselines.append(evaluate_scores(name, scores, targets, options))
    models = []
    try:
        for folder in folders:
            models.append(evaluate_model(folder, data, targets, options))
            if processes.is_first() and options.json:
                write_ranking(data, targets, [*models, *baselines], options)
    finally:  # also where the next model fails
        if processes.is_first() and models:
            print_ranking(data, targets, [*models, *baselines], options)


def summary_of(data, targets, results, options):
    """The Summary of Results, with slices by history and by how common the target is."""
    lengths = np.array([len(history) for history in targets.histories])
    counts = data.training_counts()[targets.titles]
    return summarize(results, targets.user_ids, slices(lengths, counts), options.seed)


def write_ranking(data, targets, results, options):
    """Write what --json asks for."""
    summary = summary_of(data, targets, results, options)
    values = description(data, targets, options) | {"titles": len(data.titles)}
    values["notes"] += [result.note for result in results if result.note]
    write_json(options.json, values | summary_values(summary, results))


def print_ranking(data, targets, results, options):
    """Print the tables and some users."""
    notes = [result.note for result in results if result.note]
    print("", *heading(data, targets, results, options), *notes, "", sep="\n")
    print(summary_text(summary_of(data, targets, results, options), options.wide))
    if options.json:
        print(f"\nwrote {options.json}")
    _, first_targets = np.unique(targets.user_ids, return_index=True)
    for number in first_targets[: options.show]:
        print("\n" + user_text(number, targets, results, data.titles))


if __name__ == "__main__":
    cli.run(processes.name_of("evaluate.py"), main)
