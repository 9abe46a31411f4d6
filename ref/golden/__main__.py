"""python -m ref.golden list | check DUMP --case NAME | run ADAPTER | write — see README.md.

Exit code 0: all right; 1: a deviation; 2: unusable input.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from ref.golden import case as cases
from ref.golden import compare, diagnosis, recipes
from ref.golden.plants import descriptions

RIGHT, DEVIATION, UNUSABLE = 0, 1, 2


def list_cases(options):
    """Print each case and what it catches."""
    infos = [cases.load(name).info for name in cases.names()]
    if options.json:
        fields = ("name", "what", "catches", "only_here")
        print(json.dumps([{field: info[field] for field in fields} for info in infos]))
        return RIGHT
    for info in infos:
        catches = f"catches {len(info['catches'])} known bugs"
        if info["only_here"]:
            catches += f"; alone: {', '.join(info['only_here'])}"
        if info["also_for"]:
            catches += f"; also for {info['also_for']}"
        print(f"{info['name']}: {info['what']}\n    {catches}")
    return RIGHT


def check(options):
    """Compare a dump with a case. Raises ValueError or FileNotFoundError if it cannot be read."""
    case = cases.load(options.case)
    comparison = compare.examine(case, compare.read_dump(options.dump))
    return report([comparison], {}, options.json)


def run(options):
    """Compare an adapter with the cases that it can run. Raises ValueError if it fails in one."""
    adapter = load_adapter(options.adapter)
    comparisons, skipped = [], {}
    for name in options.case or cases.names():
        case = cases.load(name)
        try:
            computed = compare.computed_by_adapter(adapter(case))
        except NotImplementedError as reason:
            skipped[name] = str(reason)
            continue
        except Exception as error:
            raise ValueError(
                f"{options.adapter}: run(case) of case {name} raised {type(error).__name__}: "
                f"{error}; expected a mapping from tensor names to arrays"
            ) from error
        comparisons.append(compare.examine(case, computed))
    if not comparisons:
        raise ValueError(f"{options.adapter}: every case was skipped; expected at least one to run")
    return report(comparisons, skipped, options.json)


def write(options):
    """Write the cases anew."""
    size = recipes.write(options.folder, options.stage)
    print(f"wrote {size:,} bytes of cases, index.json and bugs.json to {options.folder}")
    return RIGHT


def load_adapter(path):
    """The function `run` of a Python file, which is executed.

    Raises ValueError or FileNotFoundError, naming the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: not found; expected a Python file that defines run(case)")
    specification = importlib.util.spec_from_file_location("adapter", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["adapter"] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: importing it raised {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "run", None)):
        raise ValueError(
            f"{path}: defines no run; expected a function run(case) that returns arrays by name"
        )
    return module.run


def report(comparisons, skipped, as_json):
    """Print comparisons, the reasons of skipped cases by name, and the diagnosis: the exit code."""
    explanation = diagnosis.diagnose(comparisons)
    if as_json:
        print_json(comparisons, skipped, explanation)
    else:
        print_comparisons(comparisons, skipped)
        if not all(comparison.is_right for comparison in comparisons):
            print_diagnosis(explanation)
    return RIGHT if all(comparison.is_right for comparison in comparisons) else DEVIATION


def print_json(comparisons, skipped, explanation):
    """What `--json` prints."""
    described = descriptions()
    equal = [described[bug] | {"misfit": misfit} for bug, misfit in explanation.equal]
    values = {
        "cases": [comparison.as_json() for comparison in comparisons],
        "skipped": skipped,
        "nearest": dict(explanation.nearest),
        "diagnosis": equal,
    }
    # JSON has no NaN and no infinity: they become strings.
    values = json.loads(json.dumps(values), parse_constant=str)
    print(json.dumps(values, indent=1))


def print_comparisons(comparisons, skipped):
    """A line or more for each case, and how many are right."""
    for comparison in comparisons:
        print_comparison(comparison)
    for name, reason in skipped.items():
        print(f"skip  {name}: {reason}")
    num_right = sum(comparison.is_right for comparison in comparisons)
    summary = f"{num_right} of {len(comparisons)} cases are right"
    if skipped:
        summary += f", {len(skipped)} skipped"
    print(summary)


def print_comparison(comparison):
    """The line of a case, and where and by how much it deviates."""
    name, first = comparison.case.name, comparison.first
    if comparison.is_right:
        print(
            f"ok    {name}: {len(comparison.compared)} tensors, "
            f"at most {comparison.largest:.2g} of the tolerance"
        )
    else:
        print(
            f"FAIL  {name}: {first.tensor} deviates by {first.deviation:.2g} "
            f"(tolerance {first.tolerance:.0e}, {first.precision}): "
            f"{first.found:.6g}, expected {first.expected:.6g}\n      at {first.where}"
        )
        if first.precision == "float64" and first.deviation < 1e-5:
            print(
                "      Small: if the computation was in float32, save it as float32 "
                "to be held to that tolerance."
            )
    if comparison.unknown:
        print(f"      not compared, unknown here: {', '.join(comparison.unknown)}")


def print_diagnosis(explanation):
    """The known bugs that make the computed numbers, or else those that come near."""
    described = descriptions()
    print("\nDiagnosis")
    for number, (bug, _) in enumerate(explanation.equal, 1):
        description = described[bug]
        print(f"{number}. {bug} ({description['family']}): {description['what']}")
        print(f"   Effect: {description['effect']}")
        print(f"   Fix: {description['fix']}")
    if len(explanation.equal) > 1:
        print(
            f"What was given does not tell these {len(explanation.equal)} apart; "
            "the best fit comes first."
        )
    if not explanation.equal:
        print("No known bug makes these numbers. Begin at the first tensor that deviates.")
    for bug, share in explanation.nearest:
        print(f"Nearest: {bug} explains {share:.0%} ({described[bug]['what']})")


def parse_options(arguments):
    """The options of the command line; `execute` is the function of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m ref.golden", description="Golden cases of HatLLM's masks."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("list", help="the cases, and what each catches")
    command.add_argument("--json", action="store_true")
    command.set_defaults(execute=list_cases)

    command = commands.add_parser("check", help="compare a safetensors file with one case")
    command.add_argument("dump", help="safetensors file with any of the case's output tensors")
    command.add_argument("--case", required=True)
    command.add_argument("--json", action="store_true")
    command.set_defaults(execute=check)

    command = commands.add_parser("run", help="compare an adapter with all cases")
    command.add_argument("adapter", help="Python file that defines run(case) -> arrays by name")
    command.add_argument("--case", action="append", help="only this case (may be repeated)")
    command.add_argument("--json", action="store_true")
    command.set_defaults(execute=run)

    command = commands.add_parser("write", help="write the cases anew")
    command.add_argument("--folder", default=recipes.ROOT)
    command.add_argument("--stage", action="append", choices=[*recipes.BUILDERS])
    command.set_defaults(execute=write)
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run one command; returns the exit code."""
    options = parse_options(arguments)
    try:
        return options.execute(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
