"""python -m ref.golden list | check | run | audit | write | pack — see README.md.

Exit code 0: all right; 1: a deviation; 2: unusable input; others as at the head of ref/cli.py.
"""

import json
import sys
from pathlib import Path

from ref import cli
from ref.golden import audit, compare, computed, diagnosis, package, recipes, report
from ref.golden import case as cases
from ref.golden.adapter import Skipped, compare_adapter, load_adapter
from ref.golden.stages import STAGES

RIGHT, DEVIATION = 0, 1


def list_cases(options):
    """Print each case and what it catches."""
    infos = infos_in_order(options.stage)
    if options.json:
        fields = ("name", "stage", "what", "needs", "catches", "only_here", "also_for")
        print(json.dumps([{field: info[field] for field in fields} for info in infos]))
        return RIGHT
    for info in infos:
        catches = f"catches {len(info['catches'])} known bugs"
        if info["only_here"]:
            catches += f"; alone: {', '.join(info['only_here'])}"
        if info["also_for"]:
            catches += f"; also for {info['also_for']}"
        print(f"{info['name']} ({info['stage']}): {info['what']}\n    {catches}")
    return RIGHT


def infos_in_order(stages=None):
    """case.json of the cases, of all stages or some, in the order in which to take them."""
    infos = [info for info in cases.infos() if not stages or info["stage"] in stages]
    position = {name: number for number, name in enumerate(cases.names_in_index())}
    return sorted(infos, key=lambda info: position.get(info["name"], len(position)))


def names_in_order(stages=None):
    """The names of the cases, of all stages or some, in the order in which to take them."""
    return [info["name"] for info in infos_in_order(stages)]


def check(options):
    """Compare a dump with a case, or a folder of dumps with the cases that they are named after.

    Raises ValueError or OSError where nothing can be read or compared.
    """
    path = Path(options.dump)
    if options.case is None and not path.exists():
        raise FileNotFoundError(f"{path}: not found; expected a dump or a folder of dumps")
    if options.case is None and path.is_dir():
        return check_folder(path, options)
    if options.case is None and path.stem not in cases.names():
        raise ValueError(
            f"{path}: expected --case NAME, a file with the name of a case or a folder of such "
            "files"
        )
    comparison = compare_dump(path, options.case or path.stem, options.precision)
    return tell([comparison], {}, options.json)


def check_folder(folder, options):
    """Compare FOLDER/NAME.safetensors with the case NAME, for all names."""
    dumps = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    names = [name for name in names_in_order() if name in dumps]
    if not names:
        raise ValueError(f"{folder}: holds no NAME.safetensors with the name of a case")
    for name in sorted(set(dumps) - set(names)):
        line = f"not compared: {dumps[name]}: there is no case {name!r}"
        print(cli.printable(line), file=sys.stderr)
    comparisons = [compare_dump(dumps[name], name, options.precision) for name in names]
    skipped = {name: "no dump" for name in names_in_order() if name not in dumps}
    return tell(comparisons, skipped, options.json)


def compare_dump(path, name, precision):
    """The Comparison of a dump with a case; one with a `problem` where it cannot be read."""
    case = cases.load(name)
    try:
        tensors = computed.held_to(computed.read_dump(path), precision)
        return compare.examine(case, tensors)
    except (ValueError, OSError) as error:
        return compare.Comparison(case, problem=str(error))


def run(options):
    """Compare an adapter with the cases that it can run. Raises ValueError if there are none."""
    if options.case and options.stage:
        raise ValueError("--case and --stage: give one of them")
    adapter = load_adapter(options.adapter)
    comparisons, skipped = [], {}
    for name in options.case or names_in_order(options.stage):
        try:
            comparisons.append(compare_adapter(adapter, name, options.precision))
        except Skipped as reason:
            skipped[name] = str(reason)
    if not comparisons:
        name, reason = next(iter(skipped.items()))
        raise ValueError(
            f"{options.adapter}: every case was skipped ({name}: {reason}); "
            "expected at least one to run"
        )
    return tell(comparisons, skipped, options.json)


def tell(comparisons, skipped, as_json):
    """Print comparisons, the reasons of skipped cases by name, and the diagnosis: the exit code.

    Raises ValueError where nothing could be compared.
    """
    if all(comparison.problem is not None for comparison in comparisons):
        first = comparisons[0]
        raise ValueError(f"nothing could be compared; case {first.case.name}: {first.problem}")
    if as_json:
        diagnoses = diagnosis.diagnose_stages(comparisons)
        print(report.as_json(comparisons, skipped, diagnoses))
    else:
        for comparison in comparisons:
            report.print_comparison(comparison)
        sys.stdout.flush()  # the diagnosis takes some seconds
        report.print_diagnoses(diagnosis.diagnose_stages(comparisons))
        report.print_skipped(skipped)
        report.print_summary(comparisons, skipped)
    return RIGHT if all(comparison.is_right for comparison in comparisons) else DEVIATION


def write(options):
    """Write the cases anew, and draw which bugs they detect."""
    size = recipes.write(options.folder, options.stage)
    print(f"wrote {size:,} bytes of cases to {options.folder}")
    if options.stage:
        print("pictures are drawn of all stages only: run `write` without --stage")
    return RIGHT


def pack(options):
    """Write all that a project in another language needs into one archive."""
    version, count = package.pack(options.archive)
    print(f"wrote {options.archive}: {count} files, version {version}")
    return RIGHT


def parse_options(arguments):
    """The options of the command line; `execute` is the function of the command."""
    parser = cli.Parser(
        prog="python -m ref.golden", description="Golden cases of HatLLM, from titles to metrics."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("list", help="the cases, and what each catches")
    command.add_argument("--stage", action="append", choices=[*STAGES])
    command.add_argument("--json", action="store_true")
    command.set_defaults(execute=list_cases)

    command = commands.add_parser("check", help="compare dumps with their cases")
    command.add_argument(
        "dump",
        help="safetensors file with any of a case's output tensors, "
        "or a folder of files NAME.safetensors",
    )
    command.add_argument("--case", help="the case of a file that is not named after it")
    add_options_of_comparing(command)
    command.set_defaults(execute=check)

    command = commands.add_parser("run", help="compare an adapter with all cases")
    command.add_argument("adapter", help="Python file that defines run(case) -> arrays by name")
    command.add_argument("--case", action="append", help="only this case (may be repeated)")
    command.add_argument("--stage", action="append", choices=[*STAGES])
    add_options_of_comparing(command)
    command.set_defaults(execute=run)

    audit.add_command(commands)

    command = commands.add_parser("write", help="write the cases anew, and their pictures")
    command.add_argument("--folder", default=cases.GOLDEN)
    command.add_argument("--stage", action="append", choices=[*STAGES])
    command.set_defaults(execute=write)

    command = commands.add_parser("pack", help="pack the files for another project's tests")
    command.add_argument("archive", help="FILE.tar.gz or FILE.zip")
    command.set_defaults(execute=pack)
    return parser.parse_args(arguments)


def add_options_of_comparing(command):
    """Options that `check` and `run` share."""
    command.add_argument(
        "--precision",
        choices=computed.ALL_PRECISIONS,
        help="hold every tensor to the tolerance of this precision, whatever its type is",
    )
    command.add_argument("--json", action="store_true")


def main(arguments=None):
    """Run one command; returns the exit code."""
    return cli.exit_code("ref.golden", lambda: run_command(arguments))


def run_command(arguments):
    """Run one command; returns the exit code, or raises what is wrong with its input."""
    options = parse_options(arguments)
    return options.execute(options)


if __name__ == "__main__":
    sys.exit(main())
