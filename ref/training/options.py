"""The options of train.py: parsed, checked, or taken from the log of a training to be resumed."""

import argparse
import math
import os
from pathlib import Path

import torch

from ref import cli, lora
from ref.data.columns import add_column_options
from ref.overrides import LAYOUT_CHOICES, add_mask_options
from ref.training import processes, state
from ref.training.model import lora_settings, new_config, scheme_of_new_model

USAGE = """Train a HatLLM recommender.

    python train.py                      the embedded MovieLens and 4 layers, into runs/movielens
    python train.py --data FOLDER        your own interactions (ref/data/README.md)
    python train.py --weights FOLDER     start from a Hugging Face Llama folder
    python train.py --resume FOLDER      go on with a training that was stopped or killed
    torchrun --nproc-per-node=N train.py ...    the same in N processes (ref/training/README.md)
"""


FIRST = """
    --data --out --weights --resume --intra-layers --cross-layers --loss --epochs --seed --device
""".split()

LR_OF_A_NEW_MODEL, LR_OF_A_TRAINED_MODEL = 4e-3, 1e-4
# (option, another that it needs), (option, another beside which it would have no effect)
NEEDS = (
    ("data", "out"),
    ("base", "weights"),
    ("lora_rank", "weights"),
    ("lora_alpha", "lora_rank"),
    ("lora_dropout", "lora_rank"),
    ("lora_targets", "lora_rank"),
)
EXCLUDES = (
    ("vocabulary", "weights"),
    ("layers", "weights"),
    ("hidden_size", "weights"),
    ("heads", "weights"),
    ("epochs", "max_steps"),
)


def make_parser():
    """The command line: the options that matter first, then the others group by group."""
    parser = cli.Parser(description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    first = parser.add_argument_group("what matters first")
    add_folder_options(first.add_argument)
    for title, add_options in (
        ("masks", add_mask_options),
        ("data and prompts", add_prompt_options),
        ("columns of your own data", add_column_options),
        ("loss", add_loss_options),
        ("steps", add_step_options),
        ("a new model", add_model_options),
        ("LoRA", add_lora_options),
        ("machine", add_machine_options),
    ):
        add_options(first_or_in(first, parser.add_argument_group(title)))
    return parser


def first_or_in(first, group):
    """A function like add_argument, which adds an option to `first` if it is in FIRST."""

    def add(name, **settings):
        (first if name in FIRST else group).add_argument(name, **settings)

    return add


def add_folder_options(add):
    add("--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)")
    add(
        "--out",
        default="runs/movielens",
        metavar="FOLDER",
        help="where the model goes (default: %(default)s)",
    )
    add("--weights", metavar="FOLDER", help="start from this model instead of random weights")
    add(
        "--resume",
        metavar="FOLDER",
        help="go on with the training in this folder, with its options (but for --threads)",
    )


def add_prompt_options(add):
    add(
        "--layout",
        help=f"{LAYOUT_CHOICES} (default: lines, or what --weights says)",
    )
    add(
        "--history", type=int, default=10, help="items shown before a target (default: %(default)s)"
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
        help="fewest interactions of a user, 3 or more (default: %(default)s)",
    )
    add(
        "--test-items",
        type=int,
        default=1,
        metavar="N",
        help="test targets of a user: its last N items (default: %(default)s)",
    )
    add("--valid-limit", type=int, help="validate on the first so many users only")


def add_loss_options(add):
    add(
        "--loss",
        choices=("target", "all", "titles"),
        help="tokens that are predicted (default: titles, or target where a layout such as "
        "instruction does not let every item read the same); all needs --softmax full",
    )
    add(
        "--softmax",
        choices=("catalogue", "full"),
        default="catalogue",
        help="alternatives of a token (default: %(default)s)",
    )
    add("--temperature", type=float, default=1.0, help="divides the logits (default: %(default)s)")


def add_step_options(add):
    default = "(default: %(default)s)"
    add("--epochs", type=int, default=12, help=f"passes over the training windows {default}")
    add("--max-steps", type=int, help="so many steps, instead of --epochs")
    add(
        "--patience",
        type=int,
        default=5,
        help=f"stop after so many epochs without a better validation {default}",
    )
    add("--batch-size", type=int, default=32, help=f"windows a step {default}")
    add(
        "--accumulate",
        type=int,
        default=1,
        help=f"parts that a step is computed in, to save memory {default}",
    )
    add(
        "--lr",
        type=float,
        help=f"peak learning rate (default: {LR_OF_A_NEW_MODEL:g}, or {LR_OF_A_TRAINED_MODEL:g} "
        "with --weights)",
    )
    add(
        "--warmup",
        type=int,
        default=100,
        help=f"steps until the peak, at most half of all {default}",
    )
    add("--weight-decay", type=float, default=0.1, help=f"of matrices {default}")
    add("--dropout", type=float, help="(default: 0.2, or 0 with --weights)")
    add("--clip", type=float, default=1.0, help=f"largest norm of the gradient {default}")
    add("--seed", type=int, default=0, help=f"of all that is random {default}")


def add_model_options(add):
    add(
        "--vocabulary",
        type=int,
        default=4000,
        help="tokens of a new tokenizer, at most (default: %(default)s)",
    )
    add("--layers", type=int, default=4, help="of a new model (default: %(default)s)")
    add("--hidden-size", type=int, default=64, help="of a new model (default: %(default)s)")
    add("--heads", type=int, default=4, help="of a new model (default: %(default)s)")


def add_lora_options(add):
    add(
        "--base",
        metavar="FOLDER",
        help="base model, if --weights is a LoRA adapter (default: what it says)",
    )
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


def add_machine_options(add):
    add(
        "--state-every",
        type=int,
        default=1000,
        metavar="N",
        help="write a state to resume from after every N steps too, not only after epochs "
        "(default: %(default)s)",
    )
    add(
        "--dtype",
        choices=cli.DTYPES,
        default="float32",
        help="bfloat16: frozen weights in bfloat16 with LoRA, else autocast over float32 weights "
        "(default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    add(
        "--threads",
        type=int,
        help=f"of the CPU (default: {torch.get_num_threads()}, or as before with --resume)",
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


def parse_options(arguments=None):
    """The options of the command line, checked; with --resume those of the training.

    Raises ValueError naming an option that makes no sense.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    given = parser.given(arguments)
    if options.resume:
        refuse_options_beside_resume(options.resume, given)
        return resumed_options(options, parser)
    parser.refuse_without_effect(given, NEEDS, EXCLUDES)
    if options.threads is None:
        options.threads = torch.get_num_threads()
    if options.lr is None:
        options.lr = LR_OF_A_TRAINED_MODEL if options.weights else LR_OF_A_NEW_MODEL
    if options.dropout is None:  # a language model has not learned with dropout
        options.dropout = 0.0 if options.weights else 0.2
    if options.lora_rank and options.lora_alpha is None:
        options.lora_alpha = 2.0 * options.lora_rank
    check_options(options)
    return options


def refuse_options_beside_resume(folder, given):
    """Raise ValueError for other options than --resume and --threads, also with default values."""
    for name in sorted(given.keys() - {"resume", "threads"}):
        raise ValueError(
            f"--resume takes all options but --threads from {folder}; drop {cli.option(name)}, or "
            "train the model of that folder further with options of your choice: "
            f"--weights {folder} --out OTHER"
        )


def resumed_options(given, parser):
    """The options of the training in --resume, as the first line of its log has them."""
    source = f"{Path(given.resume) / 'log.jsonl'}, line 1"
    description = state.read_description(given.resume)
    logged = description.get("options")
    data = description.get("data")
    has_data = isinstance(data, dict) and "fingerprint" in data
    is_ours = has_data and type(description.get("processes")) is int
    if not is_ours or not isinstance(logged, dict):
        raise ValueError(f"{source}: is not one that train.py wrote; it cannot be resumed")
    other_names = set(logged) ^ set(vars(given))
    if other_names:
        raise ValueError(
            f"{source}: another version of train.py wrote it (options that only one of the two "
            f"has: {', '.join(sorted(other_names))}); it cannot be resumed. To train its model "
            f"further: --weights {given.resume} --out OTHER"
        )
    options = argparse.Namespace(**logged)
    try:
        check_types(options, parser)
        check_options(options)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    options.resume = options.out = given.resume
    if given.threads is not None:
        options.threads = given.threads
    for name, now, before in (
        ("threads", options.threads, logged["threads"]),
        ("processes", processes.WORLD, description["processes"]),
    ):
        if now != before:
            processes.say(
                f"{now} {name} instead of {before}: the weights will not be the same to the byte"
            )
    check_options(options)  # again: --threads is new
    return options


def check_types(options, parser):
    """Raise ValueError for an option that the command line could not have given."""
    for action in parser._actions:  # argparse has no public way to ask for them
        if action.dest == "help":
            continue
        value = getattr(options, action.dest)
        expected = action.type or str
        if isinstance(action, argparse.BooleanOptionalAction):
            expected = bool
        is_left_out = value is None and action.default is None
        is_possible = type(value) is expected
        if action.choices is not None:
            is_possible = is_possible and value in action.choices
        if not is_left_out and not is_possible:
            raise ValueError(
                f"{cli.option(action.dest)} is {value!r}; expected {expected.__name__}"
                + (f", one of {list(action.choices)}" if action.choices else "")
            )


POSITIVE = """
    epochs max_steps patience state_every valid_limit batch_size accumulate lr lora_rank lora_alpha
    clip layers hidden_size heads threads
""".split()
BELOW = {
    "warmup": 2**31,
    "weight_decay": 2**31,
    "dropout": 1,
    "lora_dropout": 1,
    "seed": 2**63,
}


def check_options(options):
    """Raise ValueError naming the first option that makes no sense."""
    for name in POSITIVE:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{cli.option(name)} is {value}; expected a positive number")
    for name, limit in BELOW.items():
        value = getattr(options, name)
        if value is None or not 0 <= value < limit:
            raise ValueError(f"{cli.option(name)} is {value}; expected 0 or more, below {limit}")
    cores = os.cpu_count() or 1
    if options.threads > 16 * cores:
        raise ValueError(
            f"--threads is {options.threads}; expected at most {16 * cores} on {cores} cores"
        )
    if options.shard and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "--shard divides a model over processes; start them with "
            "torchrun --nproc-per-node=N train.py"
        )
    if options.lora_rank:
        lora.refuse_unknown_targets(lora_settings(options).targets)
    if not options.weights:
        refuse_a_model_beyond_memory(options)
        new_config(options, vocab_size=1)  # refuses sizes that do not fit; any vocabulary will do
        scheme_of_new_model(options).kinds(options.layers)  # refuses too many layers with masks
    cli.check_device(options.device)


def refuse_a_model_beyond_memory(options):
    """Raise ValueError for a new model that this machine could not even hold, before it is made.

    While it is trained there are four numbers a parameter: the weight, its gradient, and two that
    AdamW keeps. Activations come on top.
    """
    width = options.hidden_size
    # of each layer: 4 square matrices of attention, and 3 of the MLP that are 8/3 as large
    num_parameters = options.vocabulary * width + options.layers * 12 * width**2
    needed = 4 * num_parameters * (8 if options.dtype == "float64" else 4)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"--layers {options.layers}, --hidden-size {width} and --vocabulary "
            f"{options.vocabulary} make a model of {num_parameters} parameters, which takes "
            f"{needed >> 30} GiB in training; this machine has {memory >> 30}. Choose smaller ones"
        )
