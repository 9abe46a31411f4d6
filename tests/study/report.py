"""Tables and pictures of the pages beside this file: python tests/study/report.py --pictures FOLDER

First those of the study with ten targets a user (of the committed runs, or of another file, such as
the runs.jsonl that run.py writes), then those of the earlier one with one target. What the
pages have besides, README.md says. It takes half a minute.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ref import cli
from ref.files import write_atomically

from study import (
    amount_picture,
    one_target,
    one_target_pictures,
    pretrained_picture,
    records,
    ten_targets,
)
from study.differences import picture

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="?", type=Path, default=HERE / "ten_targets.jsonl", help="of ten targets")
    add("--pictures", type=Path, metavar="FOLDER", help="draw into it")
    options = parser.parse_args()

    runs = records.read(options.runs)
    groups = ten_targets.groups(runs)
    if not groups:
        raise ValueError(f"{options.runs}: has no runs of causal and another schedule")
    rows, users, attention = one_target.rows_of(records.read(HERE / "one_target.jsonl"))
    tables = []
    for group in groups:
        tables += [ten_targets.table(runs, group), ten_targets.slice_table(runs, group)]
    tables += [one_target.table(rows, users), one_target.attention_table(attention)]
    print(*tables, sep="\n\n")

    if options.pictures:
        pictures = {
            "ten_targets.svg": picture(ten_targets.all_differences(runs), ten_targets.CLEAR),
            "study.svg": picture(one_target_pictures.differences(rows), one_target.LEVEL),
            "curves.svg": one_target_pictures.curves(rows),
        }
        first = groups[0].data
        if len(amount_picture.percents_of(first, runs)) > 1:
            pictures["amount_of_data.svg"] = amount_picture.picture(first, runs)
        for group in groups:
            if group.start is not None:
                pictures["pretrained.svg"] = pretrained_picture.picture(group, runs)
        for name, svg in pictures.items():
            write_atomically(options.pictures / name, svg.encode())


if __name__ == "__main__":
    cli.run("report.py", main)
