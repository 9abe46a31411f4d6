"""python -m ref.recommend "Heat (1995)" "toy story" ... : what to recommend behind these titles.

Titles are matched to the catalogue of the model: case, accents, a missing year and small typing
errors do not matter. Without titles, a history a line is read from standard input, its titles
separated by tabs.
"""

import argparse
import json
import math
import sys

from ref import cli
from ref.files import read_text
from ref.matching import Matcher
from ref.recommender import Recommender
from ref.report.tables import percent_text
from ref.text import clean_title


def parse_options(arguments=None):
    """The options of the command line, not yet checked."""
    parser = argparse.ArgumentParser(
        prog="python -m ref.recommend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("titles", nargs="*", metavar="TITLE", help="the history, oldest first")
    add("--weights", default="weights/movielens-hat", metavar="FOLDER", help=f"model {default}")
    add("-k", type=int, default=10, metavar="N", help=f"so many titles {default}")
    add("--candidates", metavar="FILE", help="choose among these titles, one a line")
    add("--include-seen", action="store_true", help="titles of the history may be recommended")
    add("--as-text", action="store_true", help="titles that nobody knows stay in the prompt")
    add("--json", action="store_true", help="print a JSON object a history")
    add("--base", metavar="FOLDER", help="base model, where --weights is a LoRA adapter")
    add("--dtype", choices=cli.DTYPES, default="float32")
    add("--device", default="cpu", help=f"cpu, cuda, mps {default}")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Recommend for each history; raises ValueError or FileNotFoundError for bad input."""
    options = parse_options(arguments)
    cli.check_device(options.device)
    dtype = cli.DTYPES[options.dtype]
    recommender = Recommender.load(options.weights, options.device, dtype, options.base)
    matcher = Matcher(recommender.titles)
    candidates = read_candidates(options.candidates, matcher) if options.candidates else None
    for texts in histories(options):
        history = [known_title(text, matcher, options) for text in texts]
        best = recommender.recommend(history, options.k, not options.include_seen, candidates)
        show(texts, history, best, options)


def histories(options):
    """Each a list of texts: the titles of the command line, or the lines of standard input."""
    if options.titles:
        yield options.titles
        return
    if sys.stdin.isatty():
        raise ValueError("no titles; expected some behind the command, or lines on standard input")
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n").split("\t")


def known_title(text, matcher, options):
    """The title of the catalogue that a text means.

    Raises ValueError where there is none, or several; with --as-text the text itself stays.
    """
    text = clean_title(text, "the history")
    match = matcher.match(text)
    if match.title:
        return match.title
    if options.as_text:
        return text
    if match.suggestions:
        raise ValueError(f"{text!r} may be any of {', '.join(map(repr, match.suggestions))}")
    raise ValueError(
        f"{text!r} is no title of {options.weights}; --as-text keeps it in the prompt as it is"
    )


def read_candidates(path, matcher):
    """The titles of the catalogue that the lines of a file mean."""
    candidates = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        match = matcher.match(clean_title(line, f"{path}, line {number}"))
        if match.title is None:
            nearest = f"; nearest: {', '.join(match.suggestions)}" if match.suggestions else ""
            raise ValueError(f"{path}, line {number}: {line!r} is no title{nearest}")
        candidates.append(match.title)
    if not candidates:
        raise ValueError(f"{path}: holds no title")
    return candidates


def show(texts, history, best, options):
    """Print the recommendations for one history."""
    if options.json:
        values = [{"title": title, "log_probability": log_prob} for title, log_prob in best]
        print(json.dumps({"history": history, "recommended": values}, ensure_ascii=False))
        return
    print("Because of")
    for text, title in zip(texts, history):
        print(f"  {title}" if text == title else f"  {title}   (you wrote: {text})")
    print("recommended, with probabilities")
    for rank, (title, log_prob) in enumerate(best, start=1):
        print(f"  {rank:2d}  {percent_text(math.exp(log_prob)):>6}  {title}")


if __name__ == "__main__":
    cli.run("recommend", main)
