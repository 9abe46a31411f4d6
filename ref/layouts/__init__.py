"""Layouts as JSON files: those built in, by name, and those of users, by path."""

from dataclasses import fields
from pathlib import Path

from ref.files import read_json
from ref.prompt import Layout
from ref.text import holds_half_a_surrogate_pair


def layout_from_dict(values, source):
    """A Layout from JSON values. Raises ValueError naming `source` and the field."""
    if not isinstance(values, dict):
        raise ValueError(f"{source}: the layout is {values!r}; expected an object")
    types = {field.name: field.type for field in fields(Layout)}
    for name, value in values.items():
        if name not in types:
            raise ValueError(
                f"{source}: layout field {name!r} is {value!r}; expected some of {list(types)}"
            )
        if type(value) is not types[name]:
            expected = types[name].__name__
            raise ValueError(f"{source}: layout field {name!r} is {value!r}; expected {expected}")
        if isinstance(value, str) and holds_half_a_surrogate_pair(value):
            raise ValueError(
                f"{source}: layout field {name!r} holds half a surrogate pair, "
                "which is no character"
            )
    if "name" not in values:
        raise ValueError(f"{source}: the layout has no 'name'")
    layout = Layout(**values)
    if not layout.eos and not layout.target_close:
        raise ValueError(f"{source}: nothing ends the target; expected target_close or eos")
    return layout


def load_layout(name):
    """A built-in layout by its name, or one from a JSON file by its path.

    Raises FileNotFoundError or ValueError naming the file.
    """
    if name in LAYOUTS:
        return LAYOUTS[name]
    if not Path(name).is_file():
        names = ", ".join(LAYOUTS)
        raise FileNotFoundError(f"{name}: no such file, and no built-in layout: {names}")
    return layout_from_dict(read_json(name), name)


LAYOUTS = {
    path.stem: layout_from_dict(read_json(path), path)
    for path in sorted(Path(__file__).parent.glob("*.json"))
}
