"""How a model is asked: what is kept beside its weights, in `recommender.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ref.files import read_json, write_json
from ref.layouts import LAYOUTS, layout_from_dict
from ref.prompt import Layout

_INTEGERS = ("history", "min_item", "min_user")


@dataclass(frozen=True)
class Settings:
    """How a model was trained to be asked.

    softmax: what probabilities are normalized over, "full" the vocabulary or "catalogue" the tokens
    that continue some title; temperature divides the logits. history, min_item, min_user: as in
    `ref.data.dataset.load`. The defaults are those of a plain language model.
    Raises ValueError naming a field that makes no sense.
    """

    layout: Layout = LAYOUTS["instruction"]
    softmax: str = "full"
    temperature: float = 1.0
    history: int = 10
    min_item: int = 10
    min_user: int = 5

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

    def save(self, folder):
        """Write FOLDER/recommender.json."""
        write_json(Path(folder) / "recommender.json", asdict(self))


def read_settings(folder) -> Settings:
    """The Settings of a model folder; the defaults where it has no recommender.json.

    Raises ValueError naming the file for a field that is unknown or wrong.
    """
    path = Path(folder) / "recommender.json"
    if not path.exists():
        return Settings()
    values = read_json(path)
    layout = layout_from_dict(values.get("layout"), path)
    try:
        return Settings(**values | {"layout": layout})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
