"""Options of the command line that replace what a model folder says.

They are masks, layout, softmax and temperature, and which titles and users count.
"""

import argparse
from dataclasses import fields, replace

from ref.layouts import LAYOUTS, load_layout
from ref.masks import MaskScheme
from ref.settings import Settings, read_settings

LAYOUT_CHOICES = f"{', '.join(LAYOUTS)} or a JSON file"
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
