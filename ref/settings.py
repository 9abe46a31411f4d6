"""How a model was trained to be asked: what several rooms need to know of a model's folder."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ref.files import read_json, write_json
from ref.prompt import LAYOUTS, Layout


@dataclass(frozen=True)
class Settings:
    """How a model was trained to be asked, kept in `recommender.json` beside its weights.

    softmax: what probabilities are normalized over, "full" the vocabulary or "catalogue" the tokens that continue some title; temperature
    divides the logits. history, min_item, min_user: as in `dataset.load`. A folder without the file is a plain language model: defaults.
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
        for name in ("history", "min_item", "min_user"):
            if type(getattr(self, name)) is not int or not 0 < getattr(self, name) < 2**31:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected an integer of 1 or more, below 2^31"
                )

    def save(self, folder):
        write_json(Path(folder) / "recommender.json", asdict(self))


def read_settings(folder) -> Settings:
    """The settings of a folder; raises ValueError naming the file for a field that is unknown or wrong."""
    path = Path(folder) / "recommender.json"
    if not path.exists():
        return Settings()
    values = read_json(path)
    try:
        return Settings(**values | {"layout": Layout.from_dict(values.get("layout"), path)})
    except (TypeError, ValueError) as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
