"""As much of JSON Schema as ref/golden/schemas uses."""

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def breaches(value, schema, place="case.json"):
    """A line for each place where a value does not fit its schema."""
    names = schema.get("type", list(TYPES))
    if isinstance(names, str):
        names = [names]
    if not any(is_of_type(value, name) for name in names):
        return [f"{place}: {value!r} is no {names}"]
    lines = []
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        lines.append(f"{place}: {value!r}")
    if isinstance(value, dict):
        lines += breaches_in_object(value, schema, place)
    if isinstance(value, list):
        for i, part in enumerate(value):
            lines += breaches(part, schema.get("items", {}), f"{place}[{i}]")
    return lines


def is_of_type(value, name):
    """Whether a value is of a type of JSON; true and false are no numbers."""
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name])


def breaches_in_object(value, schema, place):
    """A line for each field that is missing, unknown or wrong."""
    properties = schema.get("properties", {})
    lines = [f"{place}: no {name}" for name in schema.get("required", []) if name not in value]
    for name, part in value.items():
        if name not in properties and schema.get("additionalProperties") is False:
            lines.append(f"{place}: unknown {name}")
        lines += breaches(part, properties.get(name, {}), f"{place}.{name}")
    return lines
