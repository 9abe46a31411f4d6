"""What is kept beside the weights of a model: how it is used, and what it recommends.

That is `recommender.json`, the Settings, and `catalogue.json`, the list of titles.
"""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ref.files import read_json, write_json
from ref.layouts import LAYOUTS, layout_from_dict
from ref.prompt import Layout
from ref.text import refuse_no_title

SETTINGS_FILE = "recommender.json"
CATALOGUE_FILE = "catalogue.json"
_INTEGERS = ("history", "min_item", "min_user", "test_items")


@dataclass(frozen=True)
class Settings:
    """What training and use of a model have in common: prompts, probabilities, which data.

    softmax: what probabilities are normalized over, "full" the vocabulary or "catalogue" the tokens
    that continue some title; temperature divides the logits. history, min_item, min_user,
    test_items, min_rating: as in `ref.data.dataset.load`. The defaults are those of a folder
    without recommender.json, such as a language model's. Raises ValueError naming a field that
    makes no sense.
    """

    layout: Layout = LAYOUTS["instruction"]
    softmax: str = "full"
    temperature: float = 1.0
    history: int = 10
    min_item: int = 10
    min_user: int = 5
    test_items: int = 1
    min_rating: float | None = None

    def __post_init__(self):
        if self.softmax not in ("full", "catalogue"):
            raise ValueError(f"softmax is {self.softmax!r}; expected 'full' or 'catalogue'")
        if type(self.temperature) not in (int, float) or not 0 < self.temperature < 2**31:
            raise ValueError(f"temperature is {self.temperature!r}; expected a positive number")
        for name in _INTEGERS:
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 2**31:
                raise ValueError(
                    f"{name} is {value!r}; expected an integer of 1 or more, below 2^31"
                )
        is_number = type(self.min_rating) in (int, float) and math.isfinite(self.min_rating)
        if self.min_rating is not None and not is_number:
            raise ValueError(f"min_rating is {self.min_rating!r}; expected a number or null")

    def save(self, folder):
        """Write FOLDER/recommender.json."""
        write_json(Path(folder) / SETTINGS_FILE, asdict(self))


def read_settings(folder) -> Settings:
    """The Settings of a model folder; the defaults where it has no recommender.json.

    Raises ValueError naming the file for a field that is unknown or wrong.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.exists():
        return Settings()
    values = read_json(path)
    names = [field.name for field in fields(Settings)]
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise ValueError(f"{path}: unknown field {unknown[0]!r}; expected {', '.join(names)}")
    if "layout" not in values:
        raise ValueError(f"{path}: has no 'layout'; train.py writes it")
    layout = layout_from_dict(values["layout"], path)
    try:
        return Settings(**values | {"layout": layout})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def has_settings(folder) -> bool:
    """Does a folder say how its model is used? A language model from elsewhere does not."""
    return (Path(folder) / SETTINGS_FILE).exists()


def write_catalogue(folder, titles):
    """Write FOLDER/catalogue.json."""
    write_json(Path(folder) / CATALOGUE_FILE, list(titles))


def read_catalogue(folder) -> list:
    """The titles that the model of a folder was trained to recommend, in their order.

    Raises FileNotFoundError or ValueError naming the file.
    """
    path = Path(folder) / CATALOGUE_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file, so what can be recommended is not known; train.py writes it"
        )
    titles = read_json(path, list)
    for number, title in enumerate(titles):
        refuse_no_title(title, f"{path}, title {number}")
    if len(set(titles)) < len(titles) or not titles:
        raise ValueError(
            f"{path}: {len(titles)} titles, {len(set(titles))} distinct; expected "
            "at least one, and each once"
        )
    return titles
