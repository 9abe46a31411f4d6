"""What the documents say is so: sizes, links, counts, and what their commands print."""

import json
import re

import pytest

from ref import recommend

from support.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def code_after(heading, language):
    """The first block of code of a language after a heading."""
    return README.split(f"## {heading}\n")[1].split(f"```{language}\n")[1].split("```")[0]


def anchors(page):
    """What a link can point at in a page: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_page_is_at_most_160_lines_of_100_columns():
    lines = README.splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_counts_of_cases_and_known_bugs_are_those_of_the_files():
    golden = ROOT / "ref" / "golden"
    num_cases = len(json.loads((golden / "index.json").read_text(encoding="utf-8")))
    num_bugs = len(json.loads((golden / "bugs.json").read_text(encoding="utf-8")))
    text = " ".join(README.split())
    assert f"{num_cases} small cases" in text
    assert f"the {num_bugs} that it knows" in text


def test_the_mistake_that_the_checker_names_fails_as_many_cases_as_the_page_says():
    golden = ROOT / "ref" / "golden"
    cases = json.loads((golden / "index.json").read_text(encoding="utf-8"))
    of_model = {case["name"] for case in cases if case["stage"] == "model"}
    bugs = json.loads((golden / "bugs.json").read_text(encoding="utf-8"))
    (bug,) = [bug for bug in bugs if f"1. {bug['id']} ({bug['family']}): {bug['what']}" in README]
    num_right = len(of_model - set(bug["shown_by"]))
    assert f"{num_right} of {len(of_model)} cases are right" in README


def test_the_example_of_recommending_in_python_runs_and_prints_five_titles(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(code_after("Recommend", "python"), {})
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_example_of_recommending_in_a_terminal_prints_what_the_page_shows(run, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *expected = code_after("Recommend", "").splitlines()
    words = re.findall(r'"[^"]*"|\S+', command.removeprefix("$ python -m ref.recommend "))
    ended = run(recommend, *(word.strip('"') for word in words))
    assert ended.out.splitlines() == expected
