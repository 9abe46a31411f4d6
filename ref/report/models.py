"""Which models are evaluated and on which data: all is checked before the first one ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ref import cli, recommender
from ref.checkpoints import adapters
from ref.data import dataset
from ref.data.columns import columns_of
from ref.files import check_writable
from ref.overrides import scheme_from, settings_from
from ref.report import baselines
from ref.report.options import DEFAULT_WEIGHTS
from ref.settings import (
    CATALOGUE_FILE,
    SETTINGS_FILE,
    has_settings,
    read_catalogue,
    read_settings,
)
from ref.training import processes
from ref.training.state import read_description

_FILTERS = ("min_item", "min_user", "min_rating")


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


def settings_of_models(folders, options):
    """The Settings of all models, as changed by the options.

    Each model is loaded without its weights, so that a bad folder is refused before the first model
    ranks for an hour. Raises FileNotFoundError or ValueError.
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
    """The Dataset, filtered and split as the models were trained; ValueError where they differ.

    settings: of each folder (`settings_of_models`). A folder without recommender.json does
    not count, unless none has one.
    """
    stated = [each for folder, each in zip(folders, settings) if has_settings(folder)] or settings
    protocols = {(each.history, each.min_item, each.min_user, each.min_rating) for each in stated}
    if len(protocols) > 1:
        raise ValueError(
            "models trained with different (history, min_item, min_user, min_rating) cannot be "
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


def note_on_defaults(folder, settings, scheme) -> str | None:
    """A sentence on how a folder without recommender.json is used; None for all others."""
    if has_settings(folder):
        return None
    masks = f"{scheme.intra_layers} IN and {scheme.cross_layers} CR layers"
    if not scheme.intra_layers and not scheme.cross_layers:
        masks = "plain causal attention"
    return (
        f"{folder} has no {SETTINGS_FILE}: used as a language model with {masks}, layout "
        f"{settings.layout.name}, softmax {settings.softmax}; options can say otherwise"
    )


def notes_on_training(folder, settings, data) -> list:
    """Sentences on a model that may have been trained on targets of this data, or on other titles.

    settings: how it is used now.
    """
    if not has_settings(folder):
        return []
    saved = read_settings(folder)
    notes = []
    changed = [name for name in _FILTERS if getattr(saved, name) != getattr(settings, name)]
    if changed and not data.presplit:
        before, now = (
            ", ".join(f"{name} {getattr(each, name)}" for name in changed)
            for each in (saved, settings)
        )
        notes.append(
            f"{folder} was trained with {before}, and is evaluated with {now}: if it was trained "
            "on this data, it may have seen some of the targets"
        )
    if (Path(folder) / CATALOGUE_FILE).exists():
        trained, titles = set(read_catalogue(folder)), set(data.titles)
        if trained != titles:
            notes.append(
                f"{folder} was trained on another catalogue, so on other data or with other "
                f"filters: it lacks {len(titles - trained):,} of these {len(titles):,} titles and "
                f"has {len(trained - titles):,} more"
            )
    if not notes and _was_trained_on_other_sequences(folder, data):
        notes.append(
            f"{folder} was trained on other interactions, or on the same in another order of time "
            "(with another --time-column?): it may have seen some of the targets"
        )
    return notes


def _was_trained_on_other_sequences(folder, data):
    """Does the log in a folder say so? Without one, or in an older one, nothing is said of it."""
    if not (Path(folder) / "log.jsonl").exists():
        return False
    of_training = read_description(folder).get("data")
    trained = of_training.get("sequences_sha256") if isinstance(of_training, dict) else None
    return trained is not None and trained != data.sequences_digest()


def load_with_options(folder, options, device):
    """(model, PromptEncoder, Settings) of a folder; options replace what the folder says."""
    base = options.base if adapters.is_adapter(folder) else None
    _, saved, _ = adapters.read_config(folder, base)
    scheme, settings = scheme_from(options, saved), settings_from(options, folder)
    dtype = cli.DTYPES[options.dtype]
    return recommender.load_model_and_encoder(folder, dtype, device, scheme, base, settings)


def refuse_not_finite(folder, name, values):
    """Raise ValueError for a model that gives no number: nothing of it would mean anything."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"{folder}: the {name} is {values[~np.isfinite(values)][0]}; expected a finite number. "
            "Its weights, its adapter or --temperature is too extreme"
        )


def note_on_dropped(name, encoder, dropped):
    """A sentence on items of histories that did not fit into prompts, "" if all did."""
    if not dropped:
        return ""
    return (
        f"{name}: {dropped} items of histories did not fit into {encoder.max_length} tokens "
        "and were left out"
    )
