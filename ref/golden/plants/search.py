"""The bugs of the stage `search`, in the order of search.json."""

from ref.golden.plants.search_beams import BEAMS
from ref.golden.plants.search_exclusion import EXCLUSION
from ref.golden.plants.search_scores import SCORES
from ref.golden.plants.search_tokens import TOKENS

SEARCH = SCORES | BEAMS | EXCLUSION | TOKENS
