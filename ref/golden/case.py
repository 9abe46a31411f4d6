"""Golden cases: what is in their files. They are made from recipes by `ref.golden.recipes`."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from ref.files import read_bytes, read_json
from ref.golden.definitions.prompts import Label, segment_id

GOLDEN = Path(__file__).parent
FOLDER = GOLDEN / "cases"
FORMAT = 2  # of case.json
WEIGHTS = "weights."  # how the names of a case's weights begin
# What case.json has in every stage, and in some; schemas/STAGE.json says the rest.
FIELDS = {"name": str, "stage": str, "tolerances": dict, "inputs": list, "outputs": list}
FIELDS_OF_SOME_STAGES = {"config": dict, "scheme": dict, "rows": list}


class Case:
    """One golden case: `info`, what case.json holds, and `tensors`, the arrays by name.

    In common to all stages (see schemas/STAGE.json):
        name, stage: strings
        inputs, outputs: {name: array}, what is given and what is expected, in order
    Where it matters which tokens are what:
        scheme: fields of MaskScheme as attributes; in `prompts` delimiters and target alone
    Where the case has a model:
        config: a dict with the fields of a Hugging Face config.json
        weights: float64, by the names of Hugging Face
        rows: of each row of the batch its `prompt`, a string, its `items`, titles, and `history`,
            how many of these the user had; of each token its text (`tokens`), its role (`roles`),
            and the number of its item (`entries`: 1..n history, n + 1 target, 0 none)
    Inputs are attributes, too: case.input_ids is case.tensors["input_ids"], unless a known bug
    that was planted changed it (`ref.golden.plants`).
    """

    def __init__(self, info, tensors):
        self.info = info
        self.tensors = tensors
        self.name = info["name"]
        self.stage = info["stage"]
        self.config = info.get("config")
        self.rows = info.get("rows")
        self.scheme = SimpleNamespace(**info["scheme"]) if "scheme" in info else None
        self.weights = {}
        for name, tensor in tensors.items():
            if name.startswith(WEIGHTS):
                self.weights[name.removeprefix(WEIGHTS)] = tensor.astype(float)
        for name in info["inputs"]:
            setattr(self, name, tensors[name])

    @property
    def inputs(self):
        """The given tensors by name, without the weights."""
        return {name: getattr(self, name) for name in self.info["inputs"]}

    @property
    def outputs(self):
        """The expected tensors by name, in the order of computation."""
        return {name: self.tensors[name] for name in self.info["outputs"]}


def load(name, folder=FOLDER):
    """The case in `folder`/`name`. Raises OSError or ValueError, naming the file."""
    info_path = Path(folder) / name / "case.json"
    if not info_path.is_file():
        raise FileNotFoundError(
            f"case {name!r} not found in {folder}; expected one of: {', '.join(names(folder))}"
        )
    info = read_json(info_path)
    check_fields(info, info_path)
    tensors_path = info_path.with_name("tensors.safetensors")
    try:
        tensors = load_tensors(read_bytes(tensors_path))
    except SafetensorError as error:
        raise ValueError(f"{tensors_path}: {error}; expected safetensors") from None
    for tensor in (*info["inputs"], *info["outputs"]):
        if not isinstance(tensor, str) or tensor not in tensors:
            raise ValueError(f"{tensors_path}: holds no {tensor!r}, which case.json lists")
    return Case(info, tensors)


def check_fields(info, path):
    """Raise ValueError where case.json lacks a field that the checker needs, or has a wrong one."""
    present = {name: kind for name, kind in FIELDS_OF_SOME_STAGES.items() if name in info}
    for field, kind in (FIELDS | present).items():
        value = info.get(field)
        if not isinstance(value, kind) or not value:
            raise ValueError(f"{path}: {field} is {value!r}; expected {kind.__name__}")


def names(folder=FOLDER):
    """The names of all cases in a folder, sorted."""
    return sorted(path.parent.name for path in Path(folder).glob("*/case.json"))


def names_in_index(root=GOLDEN):
    """The names of the cases in the order in which to take them; none where there is no index."""
    path = Path(root) / "index.json"
    if not path.is_file():
        return []
    try:
        return [entry["name"] for entry in read_json(path, list)]
    except (TypeError, KeyError):
        raise ValueError(f"{path}: is no list of golden cases") from None


def infos(folder=FOLDER):
    """case.json of all cases in a folder, sorted by name."""
    return [read_json(Path(folder) / name / "case.json") for name in names(folder)]


@cache
def outputs_of_stage(stage):
    """The names of the outputs that some case of a stage has."""
    of_stage = [info for info in infos() if info["stage"] == stage]
    return {name for info in of_stage for name in info["outputs"]}


def segment_ids(row, scheme):
    """The segment ids of a row's tokens, a list: -1 padding, 0 text, 1..n history, n + 1 target.

    `row` is an object of `rows` in case.json. `scheme` is a dict; its `delimiters` and `target` say
    whether these tokens count as text.
    """
    target_number = row["history"] + 1
    ids = []
    for role, item in zip(row["roles"], row["entries"], strict=True):
        if role == "padding":
            ids.append(-1)
        else:
            ids.append(segment_id(Label(item, role), target_number, scheme))
    return ids
