"""The options of evaluate.py: parsed and checked."""

import argparse

import torch

from ref import cli
from ref.data.columns import add_column_options
from ref.overrides import add_mask_options, add_override_options

USAGE = """Rank the next item of every test user, and report how well.

python evaluate.py                            what train.py made, the shipped models, baselines
python evaluate.py --weights runs/a runs/b    several models; differences are to the first
python evaluate.py --ranking full --show 3    exact scores of all titles; three users in detail
python evaluate.py --attention --svg FILE     where attention goes, in place of the ranking
"""
NEEDS = (("data", "weights"), ("base", "weights"), ("svg", "attention"))
# They would have no effect beside --attention.
OF_RANKING = """
    ranking beam_width negatives exclude_seen cache_items show batch_size softmax temperature
""".split()
DEFAULT_WEIGHTS = ("runs/movielens", "weights/movielens-hat", "weights/movielens-causal")


def parse_options(arguments=None):
    """The options of the command line, not yet checked."""
    parser = cli.Parser(description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_input_options(parser.add_argument)
    add_ranking_options(parser.add_argument)
    add_report_options(parser.add_argument)
    overrides = parser.add_argument_group("for all models, in place of what their folders say")
    add_override_options(overrides.add_argument)
    add_mask_options(overrides.add_argument, new_models=False)
    add_columns = parser.add_argument_group("columns of your own data").add_argument
    add_column_options(add_columns, of_a_model=True)
    options = parser.parse_args(arguments)
    excludes = [(name, "attention") for name in OF_RANKING]
    parser.refuse_without_effect(parser.given(arguments), NEEDS, excludes)
    if options.negatives != parser.get_default("negatives") and options.ranking != "sampled":
        raise ValueError("--negatives needs --ranking sampled, which is not given")
    return options


def add_input_options(add):
    """Data and models."""
    default = f"(default: those there are of {', '.join(DEFAULT_WEIGHTS)})"
    trained = "(default: as the models were trained)"
    base_default = "(default: what adapter_config.json says)"
    add("--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)")
    add("--weights", nargs="+", metavar="FOLDER", help=f"model folders {default}")
    add(
        "--test-items",
        type=int,
        metavar="N",
        help=f"the last N items of a user are targets {trained}",
    )
    add("--base", metavar="FOLDER", help=f"base model of LoRA adapters {base_default}")


def add_ranking_options(add):
    """How titles are ranked, and for whom."""
    default = "(default: %(default)s)"
    negatives = f"random other titles of --ranking sampled {default}"
    cache_items = "compute the IN layers once a title, not once a prompt (text='isolated' only)"
    add("--ranking", choices=("beam", "full", "sampled"), default="beam", help=default)
    add("--beam-width", type=int, default=10, help=default)
    add("--negatives", type=int, default=100, help=negatives)
    add("--limit", type=int, help="only the first so many test users")
    add("--exclude-seen", action="store_true", help="never recommend what the shown history holds")
    add("--cache-items", action="store_true", help=cache_items)
    add("--batch-size", type=int, default=64, help=f"targets at a time {default}")


def add_report_options(add):
    """What is printed and written, and what computes it."""
    default = "(default: %(default)s)"
    attention_help = "measure where the attention goes (ref/report/attention.py) instead of ranking"
    add("--show", type=int, default=0, metavar="N", help="show N users: history, top 5, truth")
    add("--seed", type=int, default=0, help=f"of negatives and bootstrap {default}")
    add("--dtype", choices=cli.DTYPES, default="float32")
    add("--device", default="cpu", help=f"cpu, cuda, mps {default}")
    add("--threads", type=int, help=f"of the CPU (default: {torch.get_num_threads()})")
    add("--wide", action="store_true", help="print all metrics, in tables of more than 80 columns")
    add("--json", metavar="FILE", help="write the report, ranks of every target included")
    add("--attention", action="store_true", help=attention_help)
    add("--svg", metavar="FILE", help="draw what --attention measures")


def check_options(options):
    """Raise ValueError naming an option that makes no sense."""
    smallest = dict(
        test_items=1, beam_width=1, negatives=1, limit=1, batch_size=1, threads=1, show=0, seed=0
    )
    for name, least in smallest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{cli.option(name)} is {value}; expected {least} or more")
    if options.json and options.json == options.svg:
        raise ValueError(f"--json and --svg are both {options.json}; expected two files")
    cli.check_device(options.device)
