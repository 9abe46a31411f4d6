"""The known bugs, executable: each alters a copy of the definition, or what the copy is given.

What each bug is, what it does and how to fix it stands in bugs.json under the same id. There is one
file a family, and a table of its bugs at the end of each file, in the order of bugs.json.

A plant is a function of (copy, case). `copy` is a fresh copy of the module `ref.llama_numpy`, some
of whose functions the plant replaces; `case` is the golden case that the copy will compute. It
returns the arguments of `forward` that it changes, by name: {} if it changes none. It alters
nothing else.
"""

from ref.golden.plants.decoding import DECODING
from ref.golden.plants.loss import LOSS
from ref.golden.plants.masks import MASKS
from ref.golden.plants.model import MODEL
from ref.golden.plants.numerics import NUMERICS
from ref.golden.plants.positions import POSITIONS
from ref.golden.plants.schedule import SCHEDULE
from ref.golden.plants.segments import SEGMENTS

PLANTS = MASKS | SCHEDULE | SEGMENTS | POSITIONS | DECODING | NUMERICS | MODEL | LOSS
