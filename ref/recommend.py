"""python -m ref.recommend "Heat (1995)" "toy story" ... : what to recommend after these titles.

Titles are matched to the catalogue of the model: case, accents, a missing year and small typing
errors do not matter. Without titles, a history a line is read from standard input, its titles
separated by tabs. Lines of --candidates are not guessed: there a typing error is refused.

python -m ref.recommend --all-users FILE [--data FOLDER] : the same for every user of a data set,
after all that the user chose. FILE ends in .jsonl (an object a user) or .csv (a line a title);
it is written when all of it is known.
"""

import argparse
import csv
import json
import math
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ref import cli
from ref.data.columns import DEFAULT_COLUMNS, add_column_options, columns_of
from ref.data.histories import load_histories
from ref.files import check_writable, naming, read_text, replacing
from ref.matching import Matcher
from ref.recommender import Recommender
from ref.report.tables import percent_text

USERS_AT_A_TIME = 64


def parse_options(arguments=None):
    """The options of the command line, not yet checked."""
    parser = cli.Parser(
        prog="python -m ref.recommend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("titles", nargs="*", metavar="TITLE", help="the history, oldest first")
    add("--weights", default="weights/movielens-hat", metavar="FOLDER", help=f"model {default}")
    add("-k", type=int, default=10, metavar="N", help=f"so many titles {default}")
    add(
        "--candidates", metavar="FILE", help="choose among these titles, one a line, without errors"
    )
    add("--include-seen", action="store_true", help="titles of the history may be recommended")
    add("--as-text", action="store_true", help="titles that the catalogue lacks stay in the prompt")
    add("--json", action="store_true", help="print a JSON object a history")
    add("--base", metavar="FOLDER", help="base model, where --weights is a LoRA adapter")
    add("--dtype", choices=cli.DTYPES, default="float32")
    add("--device", default="cpu", help=f"cpu, cuda, mps {default}")
    add("--threads", type=int, help="of the CPU (default: all)")
    all_users = parser.add_argument_group("every user of a data set").add_argument
    all_users("--all-users", metavar="FILE", help="write to this .jsonl or .csv file")
    all_users("--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)")
    add_column_options(all_users, of_a_model=True)
    return parser.parse_args(arguments)


def check_options(options):
    """Raise ValueError for options that make no sense, or do not go together."""
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads is {options.threads}; expected 1 or more")
    if options.all_users is None:
        if options.data is not None or columns_of(options) != DEFAULT_COLUMNS:
            raise ValueError("--data and its columns belong to --all-users, which is not given")
        return
    if options.titles or options.json:
        raise ValueError("--all-users takes no titles, and its FILE says whether it is JSON")
    suffix = Path(options.all_users).suffix
    if suffix not in WRITERS:
        raise ValueError(
            f"--all-users is {options.all_users!r}; expected a file that ends in .jsonl or .csv"
        )
    path = Path(options.all_users)
    if options.data and path.exists() and path.resolve().parent == Path(options.data).resolve():
        raise ValueError(f"--all-users {path}: is a file of --data already; choose another")


def main(arguments=None):
    """Recommend for each history; raises ValueError or FileNotFoundError for bad input."""
    options = parse_options(arguments)
    check_options(options)
    cli.check_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = cli.DTYPES[options.dtype]
    recommender = Recommender.load(options.weights, options.device, dtype, options.base)
    matcher = Matcher(recommender.titles)
    candidates = None
    if options.candidates:
        candidates = read_candidates(options.candidates, recommender, matcher)
    if options.all_users:
        recommend_to_all(recommender, candidates, options)
        return
    for source, texts in histories(options):
        cleaned = recommender.cleaned(texts, source)
        history = [known_title(text, source, matcher, options.as_text) for text in cleaned]
        best = recommender.recommend(history, options.k, not options.include_seen, candidates)
        show(texts, history, recommender.num_read(history), best, options)


def histories(options):
    """Yield (source, texts): the titles of the command line, or those of a line of input each.

    source is for messages. Blank lines are passed over. Raises ValueError if there is no title.
    """
    if options.titles:
        yield "the history", options.titles
        return
    is_empty = True
    if sys.stdin is not None and not sys.stdin.isatty():
        for source, line in lines_of(sys.stdin.buffer):
            if line.strip():
                is_empty = False
                yield source, line.rstrip("\r\n").split("\t")
    if is_empty:
        raise ValueError("no titles; expected some after the command, or lines on standard input")


def lines_of(stream):
    """Yield (source, line) of a stream of bytes in UTF-8, with a byte order mark or without."""
    for number, line in enumerate(stream, start=1):
        source = f"standard input, line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}: byte {error.start} is not UTF-8") from None
        yield source, text.removeprefix("\ufeff") if number == 1 else text


def title_meant(text, source, matcher, may_guess=True):
    """The title of the catalogue that a text means. may_guess: as in `Matcher.match`.

    Raises ValueError, beginning with `source`, where there is none, or several.
    """
    match = matcher.match(text, may_guess)
    if match.title is not None:
        return match.title
    if match.suggestions:
        raise ValueError(f"{source}: {text!r} may mean {', '.join(map(repr, match.suggestions))}")
    raise ValueError(f"{source}: {text!r} is no title of the catalogue")


def known_title(text, source, matcher, as_text):
    """`title_meant`; with --as-text a text that means no title, or several, stays as it is."""
    try:
        return title_meant(text, source, matcher)
    except ValueError as error:
        if as_text:
            return text
        raise ValueError(f"{error}; --as-text keeps the text in the prompt as it is") from None


def read_candidates(path, recommender, matcher):
    """The titles that the lines of a file mean, not guessed: nobody would be shown a guess."""
    candidates = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        (text,) = recommender.cleaned([line], f"{path}, line {number}")
        candidates.append(title_meant(text, f"{path}, line {number}", matcher, may_guess=False))
    if not candidates:
        raise ValueError(f"{path}: holds no title")
    return candidates


def show(texts, history, num_read, best, options):
    """Print the recommendations for one history, of which the model reads the last `num_read`."""
    if options.json:
        values = {"written": texts, "history": history, "num_read": num_read} | as_json(best)
        print(json.dumps(values))  # ASCII: safe for any terminal
        return
    print("Because of")
    for text, title in zip(texts, history):
        line = title if text == title else f"{title}   (you wrote: {text})"
        print(f"  {cli.printable(line)}")
    if num_read < len(history):
        print(f"of which the model reads the last {num_read},")
    if not best:
        print(
            "nothing is left to recommend: all that there is stands in the history; "
            "--include-seen recommends that, too"
        )
        return
    print("recommended, with probabilities")
    for rank, (title, log_prob) in enumerate(best, start=1):
        print(f"  {rank:2d}  {percent_text(math.exp(log_prob)):>6}  {cli.printable(title)}")


def as_json(best):
    """What is recommended, as both kinds of JSON hold it."""
    values = [{"title": title, "log_probability": log_prob} for title, log_prob in best]
    return {"recommended": values}


def recommend_to_all(recommender, candidates, options):
    """Write the recommendations for every user of the data."""
    check_writable(options.all_users)
    users = users_with_histories(recommender, options)
    path = Path(options.all_users)
    with (
        naming(path),
        # not `replacing` from here on: it would hold Ctrl-C back until the end
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="", dir=path.parent) as file,
        cli.progress_bar(len(users.user_ids), "recommend", "user") as bar,
    ):
        write = WRITERS[path.suffix](file)
        num_without = num_dropped = 0
        for begin in range(0, len(users.user_ids), USERS_AT_A_TIME):
            batch = slice(begin, begin + USERS_AT_A_TIME)
            histories = [[users.titles[item] for item in items] for items in users.items[batch]]
            recommended = recommender.recommend_all(
                histories, options.k, not options.include_seen, candidates
            )
            for user_id, best in zip(users.user_ids[batch], recommended):
                write(user_id, best)
                if not best:
                    num_without += 1
            num_dropped += sum(map(recommender.num_dropped, histories))
            bar.update(len(histories))
        file.seek(0)
        with replacing(path) as part, open(part, "w", encoding="utf-8", newline="") as complete:
            shutil.copyfileobj(file, complete)
    print(f"wrote {path}: {len(users.user_ids):,} users, {options.k} titles each at most")
    if num_without:
        print(f"{num_without:,} of them get none: they have chosen all that may be recommended")
    if num_dropped:
        print(f"{num_dropped:,} items of histories did not fit into prompts and were left out")


def users_with_histories(recommender, options):
    """The Histories of all users, less titles that the catalogue lacks; says what is left out.

    With --as-text such titles stay. Raises ValueError where no user has a title left.
    """
    columns = columns_of(options)
    if columns.min_rating is None:
        columns = replace(columns, min_rating=recommender.settings.min_rating)
    users = load_histories(options.data, columns)
    for note in users.notes:
        print(note)
    is_known = np.array(
        [options.as_text or title in recommender.number for title in users.titles], bool
    )
    items = [items[is_known[items]] for items in users.items]
    kept = [number for number, known in enumerate(items) if len(known)]
    if not kept:
        source = options.data or "the embedded data"
        raise ValueError(
            f"{source}: none of its {len(users.titles):,} items is a title of {options.weights}; "
            "expected the data that it was trained on, or --as-text"
        )
    say_left_out(users, is_known, len(kept))
    user_ids = [users.user_ids[number] for number in kept]
    return replace(users, user_ids=user_ids, items=[items[number] for number in kept])


def say_left_out(users, is_known, num_users):
    """Print how many titles, interactions and users have no part, if any."""
    chosen = np.concatenate(users.items)
    unknown = chosen[~is_known[chosen]]
    if len(unknown):
        num_titles = len({users.titles[item] for item in np.unique(unknown)})
        print(
            f"left out of histories: {num_titles:,} titles that the catalogue lacks "
            f"({len(unknown):,} of {len(chosen):,} interactions)"
        )
    if num_users < len(users.user_ids):
        print(
            f"{len(users.user_ids) - num_users:,} of {len(users.user_ids):,} users have no title "
            "left; nothing is recommended to them"
        )


def json_lines_writer(file):
    """A function that writes what is recommended to a user: a JSON object."""

    def write(user_id, best):
        file.write(json.dumps({"user_id": user_id} | as_json(best), ensure_ascii=False) + "\n")

    return write


def csv_writer(file):
    """A function that writes what is recommended to a user: a line a title."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("user_id", "rank", "title", "log_probability"))

    def write(user_id, best):
        for rank, (title, log_prob) in enumerate(best, start=1):
            writer.writerow((user_id, rank, title, log_prob))

    return write


WRITERS = {".jsonl": json_lines_writer, ".csv": csv_writer}


if __name__ == "__main__":
    cli.run("recommend", main)
