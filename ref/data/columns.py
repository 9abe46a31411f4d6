"""Which column of a table holds what: known names, or those that options say."""

import math
from dataclasses import dataclass, fields

# What a column may be called, of each thing that is read; letter case does not matter.
KNOWN = {
    "user": ("user_id", "userId", "user", "uid", "reviewerID"),
    "item": ("item_id", "movieId", "movie_id", "item", "iid", "product_id", "parent_asin", "asin"),
    "time": ("timestamp", "time", "date", "datetime", "created_at", "unixReviewTime"),
    "title": ("title", "movie_title", "item_name", "product_title", "name"),
    "rating": ("rating", "score", "stars", "overall"),
}
KNOWN_NAMES = {name.lower() for names in KNOWN.values() for name in names}


@dataclass(frozen=True)
class Columns:
    """The names of columns that options say, None for the known ones.

    min_rating: interactions that were rated lower are left out.
    """

    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    title_column: str | None = None
    rating_column: str | None = None
    min_rating: float | None = None

    def __post_init__(self):
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise ValueError(f"min_rating is {self.min_rating}; expected a number")

    def names_of(self, what):
        """What the column that holds `what`, a key of KNOWN, may be called."""
        option = getattr(self, f"{what}_column")
        return (option,) if option else KNOWN[what]

    def find(self, what, table, is_needed=True):
        """The index of the column that holds `what`, a key of KNOWN, in a Table; None if none does.

        Raises ValueError naming the file if it is needed, or named by an option, and not there.
        """
        names = self.names_of(what)
        for name in names:
            index = table.index_of(name)
            if index is not None:
                return index
        if is_needed or names != KNOWN[what]:
            raise ValueError(
                f"{table.path}: column {names[0]!r} is missing; found {table.header[:10]}; "
                f"--{what}-column names another, in all files"
            )
        return None


DEFAULT_COLUMNS = Columns()


def add_column_options(add, of_a_model=False):
    """The options of a command line that become Columns.

    of_a_model: does a model's folder say which ratings count, if the options do not?
    """
    for what, names in KNOWN.items():
        known = ", ".join(names[:3])
        add(f"--{what}-column", metavar="NAME", help=f"(default: {known}, ...)")
    default = " (default: as the model's folder says)" if of_a_model else ""
    add("--min-rating", type=float, metavar="R", help=f"leave out what was rated lower{default}")


def columns_of(options) -> Columns:
    """The Columns that parsed options say."""
    return Columns(**{field.name: getattr(options, field.name) for field in fields(Columns)})
