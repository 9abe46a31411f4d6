"""What the tests of the study share."""

import base64
import zlib


def numbers_by_hand(text):
    """The numbers of a packed text: first all low bytes, then all high ones."""
    halves = zlib.decompress(base64.b85decode(text))
    middle = len(halves) // 2
    return [low + 256 * high for low, high in zip(halves[:middle], halves[middle:])]
