"""python -m ref.golden list | check DUMP --case NAME | run ADAPTER | write — see README.md beside this file.

Exit code 0: all right; 1: a deviation; 2: unusable input.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from ref.golden import case as cases
from ref.golden import compare, diagnosis, recipes


def report(examined, as_json, skipped=()):
    """Print the results and the diagnosis; returns the exit code."""
    equal, near = diagnosis.diagnose(examined)
    results, texts = [result for _, _, result in examined], diagnosis.texts()
    if as_json:
        said = {
            "cases": results,
            "skipped": dict(skipped),
            "nearest": dict(near),
            "diagnosis": [texts[bug] | {"misfit": misfit} for bug, misfit in equal],
        }
        said = json.loads(json.dumps(said), parse_constant=str)  # JSON has no NaN and no infinity
        print(json.dumps(said, indent=1))
        return int(any(not result["ok"] for result in results))
    for result in results:
        print_result(result)
    for name, why in skipped:
        print(f"skip  {name}: {why}")
    failed = [result["case"] for result in results if not result["ok"]]
    also = f", {len(skipped)} skipped" if skipped else ""
    print(f"{len(results) - len(failed)} of {len(results)} cases are right{also}")
    if not failed:
        return 0
    print("\nDiagnosis")
    for number, (bug, _) in enumerate(equal, 1):
        text = texts[bug]
        print(
            f"{number}. {bug} ({text['family']}): {text['what']}\n   Effect: {text['effect']}\n   Fix: {text['fix']}"
        )
    if len(equal) > 1:
        print(f"What was given does not tell these {len(equal)} apart; the best fit comes first.")
    if not equal:
        print(
            "No known bug makes these numbers. Begin at the first tensor that deviates."
            + "".join(
                f"\nNearest: {bug} explains {share:.0%} ({texts[bug]['what']})"
                for bug, share in near
            )
        )
    return 1


def print_result(result):
    """The line of a case, and where and by how much it deviates."""
    if result["ok"]:
        print(
            f"ok    {result['case']}: {len(result['compared'])} tensors, "
            f"at most {result['largest']:.2g} of the tolerance"
        )
    else:
        first = result["first"]
        print(
            f"FAIL  {result['case']}: {first['tensor']} deviates by {first['deviation']:.2g} (tolerance "
            f"{first['tolerance']:.0e}, {first['precision']}): {first['found']:.6g}, expected "
            f"{first['expected']:.6g}\n      at {first['where']}"
        )
        if first["precision"] == "float64" and first["deviation"] < 1e-5:
            print(
                "      Small: if the computation was in float32, save it as float32 to be held to that tolerance."
            )
    if result["unknown"]:
        print(f"      not compared, unknown here: {', '.join(result['unknown'])}")


def list_cases(options):
    """Print each case and what it catches."""
    loaded = [cases.load(name).info for name in cases.names()]
    if options.json:
        print(
            json.dumps(
                [
                    {key: info[key] for key in ("name", "what", "catches", "only_here")}
                    for info in loaded
                ]
            )
        )
        return
    for info in loaded:
        alone = f"; alone: {', '.join(info['only_here'])}" if info["only_here"] else ""
        also_for = f"; also for {info['also_for']}" if info["also_for"] else ""
        print(
            f"{info['name']}: {info['what']}\n    catches {len(info['catches'])} known bugs{alone}{also_for}"
        )


def check(options):
    """Compare a dump with a case; raises ValueError if it cannot be read."""
    case, found = cases.load(options.case), compare.read_dump(options.dump)
    return report([(case, found, compare.examine(case, found))], options.json)


def run(options):
    """Compare an adapter with the cases that it can run; raises ValueError if it fails in one."""
    adapter, examined, skipped = load_adapter(options.adapter), [], []
    for name in options.case or cases.names():
        case = cases.load(name)
        try:
            found = compare.found_by_adapter(adapter(case))
        except NotImplementedError as why:
            skipped.append((name, str(why)))
            continue
        except Exception as error:
            raise ValueError(
                f"{options.adapter}: run(case) of case {name} raised {type(error).__name__}: {error}; "
                "expected a mapping from tensor names to arrays"
            ) from error
        examined.append((case, found, compare.examine(case, found)))
    if not examined:
        raise ValueError(f"{options.adapter}: every case was skipped; expected at least one to run")
    return report(examined, options.json, skipped)


def load_adapter(path):
    """The function `run` of a Python file, which is executed; raises ValueError or FileNotFoundError naming the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: not found; expected a Python file that defines run(case)")
    specification = importlib.util.spec_from_file_location("adapter", path)
    module = sys.modules["adapter"] = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: importing it raised {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "run", None)):
        raise ValueError(
            f"{path}: defines no run; expected a function run(case) that returns arrays by name"
        )
    return module.run


def write(options):
    print(f"wrote {recipes.write(options.folder):,} bytes to {options.folder}")


def main(arguments=None):
    """0: right, 1: a deviation, 2: unusable input."""
    parser = argparse.ArgumentParser(
        prog="python -m ref.golden", description="Golden cases of HatLLM's masks."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = {
        name: commands.add_parser(name, help=text)
        for name, text in {
            "list": "the cases, and what each catches",
            "check": "compare a safetensors file with one case",
            "run": "compare an adapter with all cases",
            "write": "write the cases anew",
        }.items()
    }
    command["check"].add_argument(
        "dump", help="safetensors file with any of the case's output tensors"
    )
    command["check"].add_argument("--case", required=True)
    command["run"].add_argument(
        "adapter", help="Python file that defines run(case) -> arrays by name"
    )
    command["run"].add_argument("--case", action="append", help="only this case (may be repeated)")
    command["write"].add_argument("--folder", default=cases.FOLDER)
    for name in ("list", "check", "run"):
        command[name].add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return {"list": list_cases, "check": check, "run": run, "write": write}[options.command](
            options
        ) or 0
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
