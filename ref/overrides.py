"""Options of the command line that replace what a model folder says.

They are masks, layout, softmax and temperature, and which titles and users count.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from ref.layouts import LAYOUTS, load_layout
from ref.masks import MaskScheme
from ref.settings import CATALOGUE_FILE, SETTINGS_FILE, Settings, read_catalogue, read_settings

LAYOUT_CHOICES = f"{', '.join(LAYOUTS)} or a JSON file"
_FILTERS = ("min_item", "min_user", "min_rating")
_REPLACEABLE = ("softmax", "temperature", "history", "min_item", "min_user", "min_rating")


def add_mask_options(add, new_models=True):
    """The options of a command line that become a MaskScheme.

    new_models: does the command make models, too?
    """

    def default(of_new_model):
        of_new_model = f"; a new model: {of_new_model}" if new_models else ""
        return f"(default: what --weights says{of_new_model})"

    add("--intra-layers", type=int, help=f"IN layers {default(1)}")
    add("--cross-layers", type=int, help=f"CR layers {default(1)}")
    add(
        "--cross-self",
        action=argparse.BooleanOptionalAction,
        help=f"does a token see itself in CR layers? {default('yes')}",
    )
    add(
        "--text",
        choices=("visible", "isolated"),
        help=f"what items see of text in IN layers {default('visible')}",
    )
    add(
        "--delimiters",
        choices=("item", "text"),
        help=f"what delimiters of an item belong to {default('item')}",
    )
    add(
        "--target",
        choices=("item", "text"),
        help=f"what the target is to the masks {default('item')}",
    )


def add_override_options(add):
    """The options of a command line that replace Settings of a model folder."""
    saved = "(default: what the folder says)"
    add("--layout", help=f"{LAYOUT_CHOICES} {saved}")
    add("--softmax", choices=("catalogue", "full"), help=f"alternatives of a token {saved}")
    add("--temperature", type=float, help=f"divides the logits {saved}")
    add("--history", type=int, help=f"items shown before a target {saved}")
    add("--min-item", type=int, help=f"fewest interactions of an item {saved}")
    add("--min-user", type=int, help=f"fewest interactions of a user {saved}")


def scheme_from(options, saved) -> MaskScheme:
    """The MaskScheme of the command line; what it does not say is as in `saved`."""
    given = {field.name: getattr(options, field.name) for field in fields(MaskScheme)}
    return replace(saved, **{name: value for name, value in given.items() if value is not None})


def settings_from(options, folder) -> Settings:
    """The Settings of a model folder, changed as the command line says."""
    given = {name: getattr(options, name) for name in _REPLACEABLE}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.layout:
        changes["layout"] = load_layout(options.layout)
    return replace(read_settings(folder), **changes)


def has_settings(folder) -> bool:
    """Does a folder say how its model is used? A language model from elsewhere does not."""
    return (Path(folder) / SETTINGS_FILE).exists()


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
    return notes
