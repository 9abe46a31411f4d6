"""What stands in a slot of a decoding case: a prompt, and the tokens of the steps after it.

N prompts of P tokens, W slots, S steps. Step -1 are the prompts themselves.
"""

import numpy as np


def path(parents, step, slot):
    """The prompt that a slot continues at a step, and the (step, slot) of its tokens in order.

    parents: (S, W). Raises ValueError where nobody is in the slot.
    """
    nodes = []
    while step >= 0:
        nodes.insert(0, (step, slot))
        slot = int(parents[step][slot])
        if slot == -1:
            raise ValueError(f"parents: nobody is in slot {nodes[0][1]} at step {step}")
        step -= 1
    return slot, nodes


def values_along(case, kind, step, slot):
    """Token ids, segment ids or position ids of prompt and path: (P + step + 1,).

    kind: "ids", "segment_ids" or "position_ids".
    """
    prompt, nodes = path(case.parents, step, slot)
    of_steps = [getattr(case, f"step_{kind}")[node] for node in nodes]
    return np.array([*getattr(case, f"prompt_{kind}")[prompt], *of_steps])


def row_along(info, parents, step, slot):
    """An object of `rows` in case.json with the tokens of the path after it.

    The last of its `items` is the title of the target, as far as it is generated.
    """
    prompt, nodes = path(parents, step, slot)
    row = info["rows"][prompt]
    tokens = [info["step_tokens"][t][w] for t, w in nodes]
    roles = [info["step_roles"][t][w] for t, w in nodes]
    title = "".join(token for token, role in zip(tokens, roles) if role == "title")
    return row | {
        "items": [*row["items"], title],
        "tokens": row["tokens"] + tokens,
        "roles": row["roles"] + roles,
        "entries": row["entries"] + [row["history"] + 1] * len(nodes),
    }
