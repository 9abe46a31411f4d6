"""python -m ref.golden audit: which masks the attention probabilities of a trained model show.

A port that passes the golden cases can still be used wrongly: a library may drop a mask, or give
all layers the same one, and say nothing. Here anybody's model is looked at on anybody's prompt:
dump.py reads its attention probabilities, findings.py says which mask each layer shows, bugs.py
which known bugs have that pattern, report.py prints it.
"""

import argparse
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from ref import llama_numpy as definition
from ref.golden.audit.bugs import bugs_with_pattern, case_of
from ref.golden.audit.dump import read
from ref.golden.audit.findings import Layer, evidence_of, finding_of
from ref.golden.audit.report import as_json, print_audit

MOST_LAYERS = 10_000


def add_command(commands):
    """Add `audit` to the subparsers of a command line."""
    command = commands.add_parser("audit", help="say which masks a model's attention shows")
    command.add_argument("dump", help="safetensors file: layers.I.probabilities and segment_ids")
    default = "(default: %(default)s)"
    add = command.add_argument
    add("--intra-layers", type=int, required=True, metavar="I", help="IN layers of the scheme")
    add("--cross-layers", type=int, required=True, metavar="C", help="CR layers of the scheme")
    add(
        "--cross-self",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="does a token see itself in CR layers? (default: yes)",
    )
    add(
        "--text",
        choices=("visible", "isolated"),
        default="visible",
        help=f"what items see of the text in IN layers {default}",
    )
    command.add_argument(
        "--layers", type=int, metavar="L", help="layers of the model, if the dump lacks the last"
    )
    command.add_argument("--json", action="store_true")
    command.set_defaults(execute=audit)


def audit(options):
    """Print what the dump shows; returns the exit code.

    0: every layer is what the scheme says; 1: one is not; 2: the prompt does not tell of all.

    Raises FileNotFoundError or ValueError for an unusable dump or scheme.
    """
    scheme = SimpleNamespace(
        intra_layers=options.intra_layers,
        cross_layers=options.cross_layers,
        cross_self=options.cross_self,
        text=options.text,
    )
    result = examine(read(options.dump), scheme, options.layers)
    if options.json:
        print(json.dumps(as_json(result), indent=1))
    else:
        print_audit(result)
    if not result.is_right:
        return 1
    return 2 if result.untold else 0


@dataclass
class Audit:
    """All layers of a dump, and the known bugs that have exactly their pattern."""

    findings: list
    missing_layers: list  # that the dump does not hold
    bugs: list = field(default_factory=list)

    @property
    def is_right(self):
        """Whether every layer of the dump can be what the scheme says."""
        return all(finding.is_right for finding in self.findings)

    @property
    def untold(self):
        """The layers of which the prompt does not tell whether they are what the scheme says."""
        return [finding.layer for finding in self.findings if finding.is_untold]


def examine(dump, scheme, num_layers=None):
    """The Audit of a Dump beside a scheme (fields as attributes), in a model of `num_layers`.

    By default the last layer in the dump is the model's last. Raises ValueError where the dump has
    more layers, or where the scheme has.
    """
    L = max(dump.weights) + 1 if num_layers is None else num_layers
    if L > MOST_LAYERS:
        raise ValueError(f"{L} layers are more than any model has; expected at most {MOST_LAYERS}")
    if L <= max(dump.weights):
        raise ValueError(f"--layers is {L}; the dump holds layer {max(dump.weights)}, from 0")
    definition.layer_masks(dump.segment_ids[:, :1], L, scheme)  # raises for a scheme that is wrong
    masks = masks_of_kinds(dump, scheme)
    layers = []
    for i, weights in dump.weights.items():
        kind = definition.layer_kind(i, L, scheme)
        evidence = evidence_of(weights, dump.is_real)
        layers.append(Layer(finding_of(dump, i, evidence, masks, kind), evidence, masks[kind]))
    findings = [layer.finding for layer in layers]
    result = Audit(findings, [i for i in range(L) if i not in dump.weights])
    if any(finding.is_other_mask for finding in findings):
        result.bugs = bugs_with_pattern(layers, case_of(dump, scheme, L))
    return result


def masks_of_kinds(dump, scheme):
    """The mask of each kind for the dump's queries: {"IN": bool (B, 1, Q, T), ...}."""
    masks = {}
    for kind in definition.KINDS:
        rows = [definition.row_mask(kind, s, scheme) for s in dump.segment_ids.tolist()]
        masks[kind] = np.stack(rows)[:, None, -dump.num_queries :]
    return masks
