"""Which column of a table holds what: known names, or those that options say."""

from dataclasses import dataclass, fields

# What a column may be called, of each thing that is read; letter case does not matter.
KNOWN = {
    "user": ("user_id", "userId", "user", "uid", "reviewerID"),
    "item": ("item_id", "movieId", "movie_id", "item", "iid", "product_id", "parent_asin", "asin"),
    "time": ("timestamp", "time", "date", "datetime", "created_at", "unixReviewTime"),
    "title": ("title", "movie_title", "item_name", "product_title", "name"),
    "rating": ("rating", "score", "stars", "overall"),
}


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

    def find(self, what, table, is_needed=True):
        """The place of the column that holds `what`, a key of KNOWN: an index, or None.

        Raises ValueError naming the file if it is needed, or named by an option, and not there.
        """
        option = getattr(self, f"{what}_column")
        names = [option] if option else KNOWN[what]
        lower = [name.lower() for name in table.header]
        for name in names:
            if lower.count(name.lower()) > 1:
                raise ValueError(f"{table.path}: column {name!r} stands twice")
            if name.lower() in lower:
                return lower.index(name.lower())
        if is_needed or option:
            raise ValueError(
                f"{table.path}: column {names[0]!r} is missing; found {table.header[:10]}; "
                f"--{what}-column names another"
            )
        return None


KNOWN_COLUMNS = Columns()


def add_column_options(add):
    """The options of a command line that become Columns."""
    for what, names in KNOWN.items():
        known = ", ".join(names[:3])
        add(f"--{what}-column", metavar="NAME", help=f"(default: {known}, ...)")
    add("--min-rating", type=float, metavar="R", help="leave out what was rated lower")


def columns_of(options) -> Columns:
    """The Columns that parsed options say."""
    return Columns(**{field.name: getattr(options, field.name) for field in fields(Columns)})
