"""Model folders that are broken in what a recommender has besides config.json and weights.

For train.py and evaluate.py to refuse in one line. Of config.json and weights: bad_folders.py.
"""

_NINES = b"9" * 5000

# what is broken: (changes of the files, what the error message names); see commands.changed_copy
# fmt: off
BROKEN = {
    "no tokenizer": ({"tokenizer": None}, ("tokenizer.model", "no such file")),
    "empty tokenizer": ({"tokenizer": b""}, ("tokenizer.model", "SentencePiece")),
    "garbage tokenizer": ({"tokenizer": b"x" * 999}, ("tokenizer.model", "SentencePiece")),
    "no room for a prompt": ({"config": {"max_position_embeddings": 20}}, ("20",)),
    "recommender an array": ({"recommender": b"[]"}, ("recommender.json", "an array")),
    "recommender of 5,000 digits": (
        {"recommender": b'{"history": ' + _NINES + b"}"},
        ("recommender.json",),
    ),
    "layout a number": ({"recommender": {"layout": 5}}, ("recommender.json", "layout")),
    "layout half a surrogate": (
        {"recommender": {"layout": {"name": "x", "before": "\ud800", "target_close": "\n"}}},
        ("recommender.json",),
    ),
    "unknown softmax": (
        {"recommender": {"softmax": "soft"}},
        ("recommender.json", "softmax", "soft"),
    ),
    "huge temperature": (
        {"recommender": {"temperature": 10**400}},
        ("recommender.json", "temperature"),
    ),
    "huge history": ({"recommender": {"history": 10**30}}, ("history",)),
    "history a text": ({"recommender": {"history": "10"}}, ("recommender.json", "history")),
    "unknown field": ({"recommender": {"colour": 1}}, ("recommender.json", "colour")),
}
# fmt: on
# train.py reads no settings but the layout, from --weights
BROKEN_FOR_TRAINING = {
    name: (changes, fragments)
    for name, (changes, fragments) in BROKEN.items()
    if "recommender" not in changes
}
