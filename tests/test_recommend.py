"""What a person asks for: recommendations, and titles written as people write them."""

import io
import json
import sys

import pytest

from ref import recommend
from ref.matching import Matcher
from ref.recommender import Recommender
from ref.search.exact import title_log_probs

from support.commands import assert_one_line

TITLES = [
    "Heat (1995)",
    "Toy Story (1995)",
    "Toy Story 2 (1999)",
    "Matrix, The (1999)",
    "Amélie (2001)",
    "Sabrina (1954)",
    "Sabrina (1995)",
    "Schindler's List (1993)",
]


@pytest.fixture(scope="module")
def recommender(tiny_model):
    return Recommender.load(tiny_model)


@pytest.fixture
def stdin(monkeypatch):
    """Give a text to standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def exact_order(recommender, history):
    """The catalogue's titles, the most probable first, by the exact search."""
    prompt = recommender.encoder.encode(history)
    (log_probs,) = title_log_probs(recommender.decoder, [prompt])
    best_first = sorted(range(len(log_probs)), key=lambda title: (-log_probs[title], title))
    return [(recommender.titles[title], log_probs[title]) for title in best_first]


@pytest.mark.parametrize(
    "text, title",
    [
        ("Heat (1995)", "Heat (1995)"),
        ("heat", "Heat (1995)"),
        ("the matrix", "Matrix, The (1999)"),
        ("Matrix, The", "Matrix, The (1999)"),
        ("The Matrix (1999)", "Matrix, The (1999)"),
        ("amelie", "Amélie (2001)"),
        ("Toy Stroy", "Toy Story (1995)"),
        ("toy story 2", "Toy Story 2 (1999)"),
        ("schindlers list", "Schindler's List (1993)"),
        ("sabrina 1954", "Sabrina (1954)"),
    ],
)
def test_a_title_is_known_as_people_write_it(text, title):
    assert Matcher(TITLES).match(text).title == title


def test_a_text_that_means_several_titles_gets_them_all_as_suggestions():
    match = Matcher(TITLES).match("Sabrina")
    assert match.title is None
    assert match.suggestions == ["Sabrina (1954)", "Sabrina (1995)"]


@pytest.mark.parametrize("text", ["Casablanca", "?!", "(1995)"])
def test_a_text_that_means_no_title_is_not_guessed(text):
    assert Matcher(TITLES).match(text).title is None


def test_k_titles_come_back_none_of_them_seen_and_in_the_exact_order(recommender):
    history = recommender.titles[:4]
    unseen = [pair for pair in exact_order(recommender, history) if pair[0] not in history]
    best = recommender.recommend(history, k=5)
    assert [title for title, _ in best] == [title for title, _ in unseen[:5]]
    assert [score for _, score in best] == pytest.approx([score for _, score in unseen[:5]])


def test_seen_titles_come_back_where_that_is_asked_for(recommender):
    history = recommender.titles[:6]
    best = recommender.recommend(history, k=len(recommender.titles), exclude_seen=False)
    assert {title for title, _ in best} == set(recommender.titles)


def test_only_candidates_are_recommended_if_there_are_any(recommender):
    history, candidates = recommender.titles[:3], recommender.titles[2:7]
    expected = [pair for pair in exact_order(recommender, history) if pair[0] in candidates[1:]]
    best = recommender.recommend(history, candidates=candidates)
    assert [title for title, _ in best] == [title for title, _ in expected]


def test_the_model_reads_as_many_titles_as_it_was_trained_with_and_excludes_all(recommender):
    length = recommender.settings.history
    history = (recommender.titles * 3)[: length + 2]
    shown = recommender.recommend(history[-length:], k=3, exclude_seen=False)
    assert recommender.recommend(history, k=3, exclude_seen=False) == shown
    seen = {title for title, _ in recommender.recommend(history, k=50)} & set(history)
    assert seen == set()


def test_a_title_that_the_catalogue_lacks_is_read_as_text(recommender):
    known = recommender.recommend(recommender.titles[:1], k=3)
    other = recommender.recommend(["Quite another thing", recommender.titles[0]], k=3)
    assert [score for _, score in known] != [score for _, score in other]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "history is empty"),
        (("Heat",), "expected a list of titles"),
        ((["Heat"], 0), "k is 0"),
        ((["Heat"], 3, True, ["nothing"]), "candidate 'nothing' is no title"),
    ],
)
def test_what_cannot_be_asked_is_refused(recommender, arguments, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(*arguments)


def test_the_command_shows_what_it_understood_and_what_it_recommends(run, tiny_model, recommender):
    title = recommender.titles[0]
    ended = run(recommend, "--weights", tiny_model, "-k", 2, title.upper())
    assert ended.code == 0, ended.err
    assert f"{title}   (you wrote: {title.upper()})" in ended.out
    for recommended, _ in recommender.recommend([title], k=2):
        assert recommended in ended.out


def test_each_line_of_standard_input_is_a_history(run, tiny_model, recommender, stdin):
    first, second = recommender.titles[:2]
    stdin(f"{first}\t{second}\n\n{second}\n")
    ended = run(recommend, "--weights", tiny_model, "-k", 1, "--json")
    values = [json.loads(line) for line in ended.out.splitlines()]
    assert [value["history"] for value in values] == [[first, second], [second]]
    expected = recommender.recommend([first, second], k=1)[0][0]
    assert values[0]["recommended"][0]["title"] == expected


def test_candidates_come_from_a_file_of_titles(run, tiny_model, recommender, tmp_path):
    path = tmp_path / "candidates.txt"
    path.write_text("\n".join(recommender.titles[4:6]).lower() + "\n")
    ended = run(
        recommend, "--weights", tiny_model, "--candidates", path, "--json", recommender.titles[0]
    )
    titles = [value["title"] for value in json.loads(ended.out)["recommended"]]
    assert sorted(titles) == sorted(recommender.titles[4:6])


def test_an_unknown_title_is_refused_unless_it_is_to_stay_as_text(run, tiny_model):
    ended = run(recommend, "--weights", tiny_model, "Casablanca")
    assert_one_line(ended, "'Casablanca' is no title", "--as-text")
    assert run(recommend, "--weights", tiny_model, "Casablanca", "--as-text").code == 0


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no such file"),
        ("[]", "at least one"),
        ('["a", "a"]', "each once"),
        ('["a &amp; b"]', "not clean"),
        ("[1]", "expected text"),
        ("{}", "expected list"),
    ],
)
def test_a_folder_without_a_good_catalogue_is_refused(text, message, tiny_model, tmp_path, run):
    for path in tiny_model.iterdir():
        if path.name != "catalogue.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if text is not None:
        (tmp_path / "catalogue.json").write_text(text)
    assert_one_line(run(recommend, "--weights", tmp_path, "x"), "catalogue.json", message)
