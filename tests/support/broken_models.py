"""Model folders that are broken, for train.py and evaluate.py to refuse in one line."""

_NINES = b"9" * 5000

# what is broken: (changes of the files, what the error message names); see commands.changed_copy
# fmt: off
BROKEN = {
    "no tokenizer": ({"tokenizer": None}, ("tokenizer.model", "no such file")),
    "empty tokenizer": ({"tokenizer": b""}, ("tokenizer.model", "SentencePiece")),
    "garbage tokenizer": ({"tokenizer": b"x" * 999}, ("tokenizer.model", "SentencePiece")),
    "no config": ({"config": None}, ("config.json", "no such file")),
    "broken config": ({"config": b"{"}, ("config.json", "JSON")),
    "config of 5,000 digits": ({"config": b'{"vocab_size": ' + _NINES + b"}"}, ("config.json",)),
    "config not UTF-8": ({"config": b'{"a": "\xe9"}'}, ("config.json", "UTF-8")),
    "no weights": ({"model": None}, ("model.safetensors", "no such file")),
    "empty weights": ({"model": b""}, ("model.safetensors",)),
    "half the weights": ({"model": b"\x10" + bytes(7) + b"{}"}, ("model.safetensors",)),
    "other vocabulary": ({"config": {"vocab_size": 100}}, ("100", "450")),
    "other width": (
        {"config": {"hidden_size": 32, "head_dim": 16}},
        ("model.safetensors", "does not fit"),
    ),
    "too many layers for the scheme": (
        {"config": {"hatllm": {"intra_layers": 5, "cross_layers": 5}}},
        ("config.json", "2 layers"),
    ),
    "unknown scheme field": ({"config": {"hatllm": {"intra": 5}}}, ("config.json", "intra")),
    "rope parameters a list": ({"config": {"rope_parameters": [1]}}, ("config.json", "rope")),
    "rope parameters a text": ({"config": {"rope_parameters": "x"}}, ("config.json", "rope")),
    "rope type a list": (
        {"config": {"rope_parameters": {"rope_type": ["default"]}}},
        ("config.json", "rope_type"),
    ),
    "embedding beyond memory": ({"config": {"vocab_size": 10**12}}, ("vocab_size",)),
    "no room for a prompt": ({"config": {"max_position_embeddings": 20}}, ("20",)),
    "recommender a list": ({"recommender": b"[]"}, ("recommender.json", "list")),
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
