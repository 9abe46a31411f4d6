"""What Python sources import."""

import ast
from functools import cache


@cache
def tree_of(source):
    """The syntax tree of a source, parsed once."""
    return ast.parse(source)


@cache
def imports_of(source):
    """Names that a source imports, anywhere: {"numpy", "ref.files.read_json", ...}."""
    names = set()
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: relative import; write where it is from")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)
