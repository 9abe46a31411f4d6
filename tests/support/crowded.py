"""A catalogue with a long title, and a language model with little room for it."""

from support.data import TITLES, sentencepiece_model, write_interactions, write_llm

LONG_TITLE = "D " * 30 + "D"
CROWDED_TITLES = {"i0": "A", "i1": "B", "i2": "C", "i3": LONG_TITLE, "i4": "E"}


def write_crowded(folder, max_length):
    """(data folder, language model): where the model reads 290 tokens, items are dropped."""
    rows = [(f"u{user}", f"i{(user + time) % 5}", time) for user in range(24) for time in range(9)]
    data = write_interactions(folder / "crowded", rows, CROWDED_TITLES)
    tokenizer = sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=False)
    return data, write_llm(folder / "llm", tokenizer, max_length=max_length)
