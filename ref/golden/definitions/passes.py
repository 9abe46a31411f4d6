"""What a pass of decoding takes, and what it leaves for the next.

B rows: N prompts or W slots   Q new tokens of a row   T tokens of a row so far
K key/value heads   D head dim
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Tokens:
    """The new tokens of a pass, (B, Q) each."""

    ids: np.ndarray
    segment_ids: np.ndarray
    position_ids: np.ndarray


@dataclass
class Network:
    """What the layers compute with: weights by name, config.json, the scheme of the masks."""

    weights: dict
    config: dict
    scheme: object


@dataclass
class Cache:
    """What is held of B rows: segment ids (B, T); of each layer keys and values (B, K, T, D)."""

    segment_ids: np.ndarray
    keys: dict = field(default_factory=dict)  # "layers.0" -> rotated keys
    values: dict = field(default_factory=dict)
