"""What a person asks for: recommendations, and titles written as people write them."""

import csv
import io
import json
import math
import shutil
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import train
from ref import llama_numpy, recommend
from ref.checkpoints.weights import hf_parameters
from ref.layouts import LAYOUTS
from ref.masks import MaskScheme
from ref.matching import Matcher
from ref.prompt import PromptEncoder
from ref.recommender import Recommender
from ref.search.beam import beam_search
from ref.search.exact import title_log_probs
from ref.settings import Settings, read_settings

from support.commands import ROOT, assert_one_line, changed_copy, run_main, trained
from support.crowded import CROWDED_TITLES, write_crowded
from support.data import MADE_UP, made_up_rows, write_interactions, write_presplit
from support.data import TITLES as MADE_UP_TITLES
from support.models import config_of, random_model

TITLES = [
    "Heat (1995)",
    "Toy Story (1995)",
    "Toy Story 2 (1999)",
    "Matrix, The (1999)",
    "Amélie (2001)",
    "Sabrina (1954)",
    "Sabrina (1995)",
    "Schindler's List (1993)",
    "Seven (a.k.a. Se7en) (1995)",
    "Seven Samurai (Shichinin no samurai) (1954)",
    "Jules and Jim (Jules et Jim) (1961)",
]


@pytest.fixture(scope="module")
def recommender(tiny_model):
    return Recommender.load(tiny_model)


@pytest.fixture
def stdin(monkeypatch):
    """Give a text, or bytes, to standard input."""

    def give(text):
        stream = io.BytesIO(text.encode() if isinstance(text, str) else text)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))

    return give


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
        ("sabrna 1954", "Sabrina (1954)"),
        ("matrx", "Matrix, The (1999)"),
        ("seven", "Seven (a.k.a. Se7en) (1995)"),
        ("se7en", "Seven (a.k.a. Se7en) (1995)"),
        ("shichinin no samuraj", "Seven Samurai (Shichinin no samurai) (1954)"),
        ("seven samuraj", "Seven Samurai (Shichinin no samurai) (1954)"),
        ("samurai", "Seven Samurai (Shichinin no samurai) (1954)"),
        ("list", "Schindler's List (1993)"),
    ],
)
def test_a_title_is_known_as_people_write_it(text, title):
    assert Matcher(TITLES).match(text).title == title


def test_a_text_that_means_several_titles_gets_them_all_as_suggestions():
    match = Matcher(TITLES).match("Sabrina")
    assert match.title is None
    assert match.suggestions == ["Sabrina (1954)", "Sabrina (1995)"]


def test_words_in_another_order_mean_every_title_that_holds_them_all():
    match = Matcher(TITLES).match("story toy")
    assert match.title is None
    assert match.suggestions[:2] == ["Toy Story (1995)", "Toy Story 2 (1999)"]


@pytest.mark.parametrize("name", ["history", "min_item", "min_user", "test_items"])
def test_settings_below_one_are_refused(tiny_model, tmp_path, name):
    folder = changed_copy(tiny_model, tmp_path / "model", recommender={name: 0})
    with pytest.raises(
        ValueError, match=f"recommender.json: {name} is 0; expected an integer of 1"
    ):
        Recommender.load(folder)


@pytest.mark.parametrize("name", ["catalogue.json", "recommender.json"])
def test_a_model_without_catalogue_or_settings_is_refused_with_what_to_do(
    name, tiny_model, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file.*train.py writes it"):
        Recommender.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"temprature": 2}, "unknown field 'temprature'; expected layout, softmax, temperature"),
        ({"layout": "lines"}, "the layout is 'lines'; expected an object"),
    ],
)
def test_settings_of_another_form_are_refused(change, message, tiny_model, tmp_path):
    folder = changed_copy(tiny_model, tmp_path / "model", recommender=change)
    with pytest.raises(ValueError, match=f"recommender.json: {message}"):
        Recommender.load(folder)


def test_settings_without_a_layout_are_refused(tmp_path):
    (tmp_path / "recommender.json").write_text("{}")
    with pytest.raises(ValueError, match="recommender.json: has no 'layout'"):
        read_settings(tmp_path)


def test_a_model_is_loaded_to_a_device_and_in_a_precision(tiny_model):
    weight = Recommender.load(tiny_model, "cpu", torch.float64).decoder.model.norm.weight
    assert (weight.device.type, weight.dtype) == ("cpu", torch.float64)


@pytest.mark.parametrize(
    "text", ["Casablanca", "?!", "(1995)", "et", "jim", "matrx 2", "heat 1996"]
)
def test_a_text_that_means_no_title_is_not_guessed(text):
    assert Matcher(TITLES).match(text).title is None


@pytest.mark.parametrize(
    "text, title",
    [
        ("rocky vi", None),
        ("rocki v", "Rocky V (1990)"),
        ("malcom x", "Malcolm X (1992)"),
        ("malcolm", "Malcolm X (1992)"),
        ("malcolm v", None),
        ("rocky x", None),
    ],
)
def test_roman_numbers_are_not_taken_for_one_another(text, title):
    titles = ["Rocky V (1990)", "Heat (1995)", "Malcolm X (1992)"]
    assert Matcher(titles).match(text).title == title


def test_a_title_is_the_same_or_a_suggestion_where_nothing_may_be_guessed():
    matcher = Matcher(TITLES)
    assert matcher.match("the matrix", may_guess=False).title == "Matrix, The (1999)"
    assert matcher.match("matrix", may_guess=False).title == "Matrix, The (1999)"
    assert matcher.match("se7en", may_guess=False).title == "Seven (a.k.a. Se7en) (1995)"
    assert matcher.match("schindlers", may_guess=False).title is None
    assert matcher.match("samurai", may_guess=False).title is None
    match = matcher.match("Toy Stroy", may_guess=False)
    assert match.title is None and match.suggestions[0] == "Toy Story (1995)"


def test_a_title_without_letters_is_meant_by_itself_alone():
    matcher = Matcher(["???", "Heat (1995)"])
    assert matcher.match("???").title == "???"
    assert matcher.match("!").title is None


def test_titles_of_equal_tokens_count_as_one_seen_or_as_candidates(tmp_path):
    first, twin = "Title a", "Title\u2581a"  # SentencePiece reads U+2581 as a space
    titles = {f"i{n}": f"Title {letter}" for n, letter in enumerate("abcdefghijklmnopqrst")}
    data = write_interactions(tmp_path / "data", made_up_rows(), titles | {"i1": twin})
    recommender = Recommender.load(trained(data, tmp_path / "model", "--vocabulary", 281))
    assert recommender.number[first] == recommender.number[twin]
    best = recommender.recommend([twin], candidates=[first, twin, "Title d"])
    assert [title for title, _ in best] == ["Title d"]
    best = recommender.recommend(["Title e"], candidates=[first, twin])
    assert [title for title, _ in best] == [first]


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
    twice = candidates + candidates[:2]
    best = recommender.recommend(history, candidates=twice)
    assert [title for title, _ in best] == [title for title, _ in expected]
    # the probabilities are those among all titles
    assert [score for _, score in best] == pytest.approx([score for _, score in expected])


@pytest.mark.parametrize("k, width", [(3, 10), (10, 10), (12, 12)])
def test_a_search_is_ten_beams_wide_or_as_many_as_titles_are_asked_for(
    recommender, monkeypatch, k, width
):
    search = mock.Mock(wraps=beam_search)
    monkeypatch.setattr("ref.recommender.beam_search", search)
    recommender.recommend(recommender.titles[:2], k)
    assert search.call_args.args[2] == width


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
        (("Heat",), "the history: found the text 'Heat'; expected a list of titles"),
        (([3],), "the history: the title is 3; expected text"),
        ((["Heat (1995)", None],), "the history: the title is None; expected text"),
        ((["Heat"], 0), "k is 0"),
        ((["Heat"], 2.0), "k is 2.0; expected an integer"),
        ((["Heat"], 3, True, "Heat"), "candidates: found the text 'Heat'"),
        ((["Heat"], 3, True, ["nothing"]), "candidate 'nothing' is no title"),
    ],
)
def test_what_cannot_be_asked_is_refused(recommender, arguments, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(*arguments)


def test_a_text_in_place_of_a_history_among_others_is_refused(recommender):
    with pytest.raises(ValueError, match="expected a list of titles"):
        recommender.recommend_all([["Heat"], "Heat"])
    with pytest.raises(ValueError, match="expected a list of titles"):
        recommender.num_read("Heat")
    assert recommender.recommend_all([]) == []


def test_titles_may_come_in_any_iterable_and_are_cleaned(recommender):
    history, candidates = recommender.titles[:2], recommender.titles[3:6]
    expected = recommender.recommend(history, k=3, candidates=candidates)
    assert recommender.recommend(iter(history), k=3, candidates=iter(candidates)) == expected
    assert recommender.recommend(np.array(history), k=3, candidates=candidates) == expected
    with_spaces = [title.replace(" ", "\n ") for title in history]
    assert recommender.recommend(with_spaces, k=3, candidates=candidates) == expected


def test_the_command_shows_what_it_understood_and_what_it_recommends(run, tiny_model, recommender):
    title = recommender.titles[0]
    ended = run(recommend, "--weights", tiny_model, "-k", 2, title.upper())
    assert ended.code == 0, ended.err
    assert f"{title}   (you wrote: {title.upper()})" in ended.out
    for recommended, _ in recommender.recommend([title], k=2):
        assert recommended in ended.out


def test_the_command_recommends_titles_of_the_history_if_it_is_asked_to(
    run, tiny_model, recommender
):
    (title, _), *_ = recommender.recommend(recommender.titles[:1], k=1, exclude_seen=False)
    asked = ("--weights", tiny_model, "-k", 50, "--json", title)
    for options, is_there in (((), False), (("--include-seen",), True)):
        values = json.loads(run(recommend, *asked, *options).out)
        assert (title in [each["title"] for each in values["recommended"]]) == is_there


@pytest.fixture
def crowded(tmp_path):
    """A folder of data, and a trained model that reads 100 tokens."""
    data, _ = write_crowded(tmp_path, max_length=250)
    model = trained(data, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100}))
    return data, model


def test_items_that_do_not_fit_are_counted_for_all_users(crowded, run, tmp_path):
    data, model = crowded
    recommender = Recommender.load(model)
    longest = recommender.decoder.trie.longest
    dropped = 0
    for user in range(24):
        chosen = [CROWDED_TITLES[f"i{(user + time) % 5}"] for time in range(9)]
        dropped += recommender.encoder.encode(chosen, reserve=longest).dropped
    asked = ("--weights", model, "--data", data, "--all-users", tmp_path / "all.jsonl")
    _, *lines = run(recommend, *asked).out.splitlines()
    assert lines == [
        "24 of them get none: they have chosen all that may be recommended",
        f"{dropped} items of histories did not fit into prompts and were left out",
    ]


def test_how_many_titles_the_model_reads_is_told_where_it_reads_fewer(crowded, run):
    history = [*CROWDED_TITLES.values()][::-1] * 2
    _, model = crowded
    recommender = Recommender.load(model)
    prompt = recommender.encoder.encode(history[-10:], reserve=recommender.decoder.trie.longest)
    assert prompt.dropped > 0
    asked = ("--weights", model, "--include-seen", *history)
    ended = run(recommend, *asked)
    assert f"of which the model reads the last {10 - prompt.dropped}," in ended.out, ended.err
    assert json.loads(run(recommend, *asked, "--json").out)["num_read"] == 10 - prompt.dropped
    assert "of which" not in run(recommend, "--weights", model, "--include-seen", history[0]).out


def test_titles_of_the_command_line_are_cleaned(run, tiny_model, recommender):
    title = recommender.titles[0]
    ended = run(recommend, "--weights", tiny_model, "--json", f" {title.replace(' ', '&#32; ')} ")
    assert json.loads(ended.out)["history"] == [title]


def test_a_title_whose_html_was_encoded_twice_is_a_title_like_any_other(tmp_path, run):
    title = "Tom &amp; Jerry"  # in the file "Tom &amp;amp; Jerry", and decoded once
    titles = NAMES | {"i0": "Tom &amp;amp; Jerry"}
    data = write_interactions(tmp_path / "data", made_up_rows(), titles)
    model = trained(data, tmp_path / "model")
    recommender = Recommender.load(model)
    assert title in recommender.titles
    best = recommender.recommend([title], k=100, candidates=[title, recommender.titles[1]])
    assert [each for each, _ in best] == [recommender.titles[1]]
    assert json.loads(run(recommend, "--weights", model, "--json", title).out)["history"] == [title]
    (tmp_path / "candidates").write_text(f"{title}\n")
    asked = ("--weights", model, "--candidates", tmp_path / "candidates", "--include-seen")
    assert (
        f"  {title}\n" in run(recommend, *asked, recommender.titles[1]).out.split("recommended")[1]
    )


def test_a_line_of_candidates_that_is_no_title_is_named_by_its_number(
    tmp_path, tiny_model, recommender, run
):
    title = recommender.titles[0]
    (tmp_path / "candidates").write_text(f"{title}\n\nQuite another thing\n")
    asked = ("--weights", tiny_model, "--candidates", tmp_path / "candidates", title)
    assert_one_line(run(recommend, *asked), "candidates, line 3: 'Quite another thing' is no title")


@pytest.mark.parametrize(
    "line, suggestions",
    [
        ("Toy Stroy", r"'Toy Story \(1995\)'"),
        ("Sabrina", r"'Sabrina \(1954\)', 'Sabrina \(1995\)'"),
    ],
)
def test_a_line_of_candidates_is_not_guessed_and_gets_what_it_may_mean(line, suggestions, tmp_path):
    (tmp_path / "candidates").write_text(f"heat\n{line}\n")
    recommender = SimpleNamespace(cleaned=lambda titles, source: titles)
    with pytest.raises(ValueError, match=f"candidates, line 2: '{line}' may mean {suggestions}"):
        recommend.read_candidates(tmp_path / "candidates", recommender, Matcher(TITLES))


def test_candidates_of_equal_scores_come_in_the_order_of_the_catalogue():
    recommender = Recommender.load(SHIPPED)
    with torch.no_grad():
        recommender.decoder.model.lm_head.weight.zero_()
    of_length = {}
    for title, length in zip(recommender.titles, recommender.decoder.trie.title_lengths.tolist()):
        of_length.setdefault(length, []).append(title)
    candidates = max(of_length.values(), key=len)[:200]
    best = recommender.recommend(["Heat (1995)"], k=200, candidates=candidates[::-1])
    places = [candidates.index(title) for title, _ in best]
    scores = [score for _, score in best]
    ties = [i for i in range(1, len(best)) if scores[i - 1] == scores[i]]
    assert len(ties) > 10
    assert all(places[i - 1] < places[i] for i in ties)


def test_each_line_of_standard_input_is_a_history(run, tiny_model, recommender, stdin):
    first, second = recommender.titles[:2]
    stdin(f"{first.lower()} \t{second}\n\n{second}\n")
    ended = run(recommend, "--weights", tiny_model, "-k", 1, "--json")
    values = [json.loads(line) for line in ended.out.splitlines()]
    assert [value["history"] for value in values] == [[first, second], [second]]
    assert [value["written"] for value in values] == [[first.lower() + " ", second], [second]]
    expected = recommender.recommend([first, second], k=1)[0][0]
    assert values[0]["recommended"][0]["title"] == expected


def test_candidates_come_from_a_file_of_titles(run, tiny_model, recommender, tmp_path):
    path = tmp_path / "candidates.txt"
    first, second = recommender.titles[4:6]
    as_html = "".join(f"&#{ord(letter)};" for letter in second)
    path.write_text(f"{first.lower()}\n{as_html}\n")
    ended = run(
        recommend, "--weights", tiny_model, "--candidates", path, "--json", recommender.titles[0]
    )
    titles = [value["title"] for value in json.loads(ended.out)["recommended"]]
    assert sorted(titles) == sorted([first, second])


def test_a_line_of_standard_input_that_cannot_be_used_is_named(run, tiny_model, recommender, stdin):
    stdin(f"{recommender.titles[0]}\n\nCasablanca\n")
    ended = run(recommend, "--weights", tiny_model)
    assert "standard input, line 3: 'Casablanca' is no title" in ended.err


def test_standard_input_may_begin_with_a_byte_order_mark(run, tiny_model, stdin):
    stdin(b"\xef\xbb\xbfCasablanca\n")
    ended = run(recommend, "--weights", tiny_model, "--json", "--as-text")
    assert json.loads(ended.out)["history"] == ["Casablanca"]


@pytest.mark.parametrize(
    "text, message",
    [(b"Heat\nCaf\xe9\n", "standard input, line 2: byte 3 is not UTF-8"), (b"\n", "no titles")],
)
def test_standard_input_without_titles_or_of_another_encoding_is_refused(
    text, message, run, tiny_model, stdin
):
    stdin(text)
    assert_one_line(run(recommend, "--weights", tiny_model, "--as-text"), message)


def test_where_nothing_is_left_to_recommend_that_is_said(run, tiny_model, recommender, tmp_path):
    (tmp_path / "candidates").write_text(recommender.titles[0])
    asked = ("--weights", tiny_model, "--candidates", tmp_path / "candidates")
    ended = run(recommend, *asked, recommender.titles[0])
    assert ended.code == 0
    assert "nothing is left to recommend" in ended.out
    assert "recommended, with probabilities" not in ended.out


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
        ('["a  b"]', "white space"),
        ('[""]', "title 0: the title is empty"),
        ("[1]", "expected text"),
        ("{}", "expected an array"),
    ],
)
def test_a_folder_without_a_good_catalogue_is_refused(text, message, tiny_model, tmp_path, run):
    for path in tiny_model.iterdir():
        if path.name != "catalogue.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if text is not None:
        (tmp_path / "catalogue.json").write_text(text)
    assert_one_line(run(recommend, "--weights", tmp_path, "x"), "catalogue.json", message)


class LetterTokenizer:
    """A token is a letter; `letters` are numbered from 0, and so is the beginning of a sequence."""

    bos_id = 0
    eos_id = -1
    source = "a tokenizer of letters"

    def __init__(self, letters):
        self.letters = letters

    def encode(self, text):
        return [self.letters.index(letter) for letter in text], [*range(len(text))]


def log_prob_by_numpy(model, encoder, history, title):
    """Of a title after a history, with the full softmax, by the definition in NumPy."""
    prompt = encoder.encode(history, title)
    logits = llama_numpy.forward(
        {name: weight.detach().numpy() for name, weight in hf_parameters(model).items()},
        asdict(model.config),
        prompt.input_ids[None],
        prompt.segment_ids[None],
        model.scheme,
    )[0]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = range(prompt.prompt_length, len(prompt.input_ids))
    return sum(log_probs[place - 1, prompt.input_ids[place]] for place in places)


@pytest.mark.parametrize(
    "letters, bos",
    [("ab\n", False), ("\nab", False), ("*ab\n", True), ("ab\n", True)],
    ids=["token 0 in titles", "token 0 ends titles", "token 0 begins prompts", "both"],
)
def test_token_0_counts_like_any_other(letters, bos):
    layout = replace(LAYOUTS["lines"], bos=bos)
    model = random_model(config_of(vocab_size=4), MaskScheme(1, 1), dtype=torch.float64)
    encoder = PromptEncoder(LetterTokenizer(letters), layout, model.scheme, 50)
    titles = ["a", "aa", "ab", "baa", "bb", "aab"]
    recommender = Recommender(model, encoder, Settings(layout=layout), titles)
    histories = [["a"], ["aa", "ba", "aa", "b"], ["bb", "a"]]
    recommended = recommender.recommend_all(histories, k=6, exclude_seen=False)
    for history, best in zip(histories, recommended):
        expected = {title: log_prob_by_numpy(model, encoder, history, title) for title in titles}
        assert dict(best) == pytest.approx(expected)
        assert [title for title, _ in best] == sorted(titles, key=lambda title: -expected[title])


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_lines(path):
    """{user id: [(title, log-probability), ...]} of a .jsonl file, in its order."""
    values = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        value["user_id"]: [
            (best["title"], best["log_probability"]) for best in value["recommended"]
        ]
        for value in values
    }


def histories_by_hand(rows, titles):
    """{user: titles, oldest first}; users as they first appear, ties as in the file."""
    in_time = sorted(rows, key=lambda row: row[2])
    users = dict.fromkeys(user for user, _, _ in rows)
    return {user: [titles[item] for own, item, _ in in_time if own == user] for user in users}


@pytest.fixture(scope="module", autouse=True)
def five_users_at_a_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommend, "USERS_AT_A_TIME", 5)
        yield


@pytest.fixture
def to_all(run, tiny_model, tmp_path):
    """Recommend for all users of a folder: (how it ended, what a .jsonl file holds)."""

    def call(folder, *options, weights=tiny_model):
        path = tmp_path / "out" / "all.jsonl"
        ended = run(
            recommend, "--weights", weights, "--data", folder, "--all-users", path, *options
        )
        assert ended.code == 0, ended.err
        return ended, read_lines(path)

    return call


@pytest.fixture(scope="module")
def recommended_to_all(tiny_model, made_up_data, tmp_path_factory):
    """Three titles for every user of the made-up data."""
    path = tmp_path_factory.mktemp("all") / "all.jsonl"
    asked = ("--weights", tiny_model, "--data", made_up_data, "--all-users", path, "-k", 3)
    assert run_main(recommend, *asked) == 0
    return read_lines(path)


NAMES = {f"i{number}": title for number, title in enumerate(MADE_UP_TITLES)}


def test_every_user_gets_what_the_exact_search_finds_after_all_that_the_user_chose(
    recommended_to_all, recommender
):
    histories = histories_by_hand(made_up_rows(), NAMES)
    assert list(recommended_to_all) == list(histories)
    for user, history in histories.items():
        shown = history[-recommender.settings.history :]
        order = exact_order(recommender, shown)
        unseen = [pair for pair in order if pair[0] not in history][:3]
        titles, scores = zip(*recommended_to_all[user])
        assert list(titles) == [title for title, _ in unseen]
        assert list(scores) == pytest.approx([score for _, score in unseen])


def test_every_user_gets_what_asking_for_that_user_alone_gives_seen_titles_too(
    to_all, made_up_data, recommender
):
    ended, recommended = to_all(made_up_data, "-k", 4, "--include-seen")
    assert "left" not in ended.out  # nobody and nothing is left out
    histories = histories_by_hand(made_up_rows(), NAMES)
    for user in ("u0", "u5", "u11"):
        alone = recommender.recommend(histories[user], 4, exclude_seen=False)
        assert [title for title, _ in recommended[user]] == [title for title, _ in alone]


def test_a_table_holds_what_json_lines_hold(
    run, tiny_model, recommended_to_all, made_up_data, tmp_path
):
    path = tmp_path / "all.csv"
    run(recommend, "--weights", tiny_model, "--data", made_up_data, "--all-users", path, "-k", 3)
    expected = []
    for user, best in recommended_to_all.items():
        for rank, (title, log_prob) in enumerate(best, start=1):
            expected.append((user, str(rank), title, str(log_prob)))
    assert [tuple(row.values()) for row in read_table(path)] == expected


def test_titles_that_the_catalogue_lacks_and_users_without_others_are_counted(
    to_all, recommended_to_all, tmp_path
):
    rows, new = made_up_rows(), [("u3", "new", 99), ("u3", "newer", 98), ("late", "new", 5)]
    titles = NAMES | {"new": "Another", "newer": "Another"}
    folder = write_interactions(tmp_path / "more", [*new, *rows], titles)
    ended, recommended = to_all(folder, "-k", 3)
    assert "left out of histories: 1 titles that the catalogue lacks (3 of 99" in ended.out
    assert "1 of 13 users have no title left" in ended.out
    assert set(recommended) == set(recommended_to_all)
    for user, best in recommended_to_all.items():
        assert recommended[user] == [(title, pytest.approx(score)) for title, score in best]


def test_users_to_whom_nothing_is_recommended_are_counted(to_all, tmp_path):
    titles = {"i1": MADE_UP_TITLES[1], "i2": MADE_UP_TITLES[2], "untitled": ""}
    rows = [("u", "i1", 1), ("v", "i1", 1), ("v", "i2", 2), ("last", "untitled", 1)]
    folder = write_interactions(tmp_path / "few", rows, titles)
    candidates = tmp_path / "candidates.txt"
    candidates.write_text("\n".join(MADE_UP_TITLES[1:3]), encoding="utf-8")
    ended, recommended = to_all(folder, "--candidates", candidates)
    assert "1 items without a title left out ('untitled'), and 1 interactions" in ended.out
    assert "1 of 3 users have no title left" in ended.out
    assert "2 users, 10 titles each at most\n1 of them get none: they have chosen all" in ended.out
    assert [title for title, _ in recommended["u"]] == [MADE_UP_TITLES[2]]
    assert recommended["v"] == []
    ended, recommended = to_all(folder, "--as-text")
    assert "1 of 3 users have no title left" in ended.out and list(recommended) == ["u", "v"]


def test_titles_that_the_catalogue_lacks_can_stay_as_text(to_all, recommender, tmp_path):
    rows = [("u", "i1", 1), ("u", "new", 2), ("v", "new", 3)]
    folder = write_interactions(tmp_path / "text", rows, NAMES | {"new": "Another"})
    _, recommended = to_all(folder, "-k", 3, "--as-text")
    for user, history in {"u": [MADE_UP_TITLES[1], "Another"], "v": ["Another"]}.items():
        alone = recommender.recommend(history, k=3)
        assert recommended[user] == [(title, pytest.approx(score)) for title, score in alone]


def test_of_data_that_comes_split_the_last_window_is_read_and_all_windows_are_seen(
    to_all, recommender, tmp_path
):
    train = [(["i3", "i4", "i5"], 9), (["i6", "i7"], 1), (["i1", "i2", "i3"], 5)]
    test = [(["i2", "i3", "i4"], 7), (["i8", "i9"], 3)]
    folder = write_presplit(tmp_path / "split", train, test, NAMES)
    for name, users in (("train.csv", "uvu"), ("test.csv", "uw")):
        header, *lines = (folder / name).read_text().splitlines()
        changed = [f"{user},{line.partition(',')[2]}" for user, line in zip(users, lines)]
        (folder / name).write_text("\n".join([header, *changed]))
    _, recommended = to_all(folder, "-k", 3)
    numbers = {"u": (1, 2, 3, 4, 5), "v": (6, 7), "w": (8, 9)}
    assert list(recommended) == ["u", "v", "w"]
    for user, own in numbers.items():
        alone = recommender.recommend([MADE_UP_TITLES[number] for number in own], k=3)
        assert [title for title, _ in recommended[user]] == [title for title, _ in alone]


def test_an_interrupted_run_leaves_the_old_file_and_what_is_done_beside_it(
    run, tiny_model, made_up_data, tmp_path, monkeypatch
):
    path = tmp_path / "all.jsonl"
    path.write_text("old")
    numbers_of_users = []
    recommend_all = Recommender.recommend_all

    def interrupted(self, histories, *arguments):
        numbers_of_users.append(len(histories))
        if len(numbers_of_users) == 2:
            raise KeyboardInterrupt
        return recommend_all(self, histories, *arguments)

    monkeypatch.setattr(Recommender, "recommend_all", interrupted)
    asked = ("--weights", tiny_model, "--data", made_up_data, "--all-users", path)
    assert run(recommend, *asked).code == 130
    assert path.read_text() == "old"
    assert numbers_of_users[0] == 5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_link_stays_a_link_where_all_users_are_written(tmp_path, run, made_up_data, tiny_model):
    (tmp_path / "target.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    (tmp_path / "link.csv.part").write_text("mine")
    asked = ("--weights", tiny_model, "--data", made_up_data)
    assert run(recommend, *asked, "--all-users", tmp_path / "link.csv").code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text().startswith("user_id,rank,title")
    assert (tmp_path / "link.csv.part").read_text() == "mine"


def test_interactions_are_not_replaced_by_recommendations(run, tiny_model, interactions_folder):
    path = interactions_folder / "interactions.csv"
    before = path.read_bytes()
    asked = ("--weights", tiny_model, "--data", interactions_folder, "--all-users", path)
    assert_one_line(run(recommend, *asked), path, "is a file of --data already")
    assert path.read_bytes() == before


SHIPPED = ROOT / "weights" / "movielens-hat"


@pytest.mark.parametrize("candidates", [None, ["Heat (1995)", "Toy Story (1995)"]])
def test_a_model_that_gives_no_numbers_is_refused(candidates):
    recommender = Recommender.load(SHIPPED)
    recommender.decoder.model.norm.weight.data[0] = math.inf
    with pytest.raises(ValueError, match="no finite probability"):
        recommender.recommend(["Heat (1995)"], exclude_seen=False, candidates=candidates)


def test_a_model_that_gives_no_numbers_is_refused_also_where_one_title_is_left():
    recommender = Recommender.load(SHIPPED)
    recommender.decoder.model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="no finite probability"):
        recommender.recommend(recommender.titles[1:])


def test_an_empty_list_is_right_where_all_has_been_seen():
    recommender = Recommender.load(SHIPPED)
    assert recommender.recommend(["Heat (1995)"], candidates=["Heat (1995)"]) == []
    assert recommender.recommend(["Heat (1995)"], candidates=[]) == []


@pytest.mark.parametrize(
    "options, fragments",
    [
        ("--threads 0", ("--threads is 0", "1 or more")),
        ("--data nowhere", ("--data", "belong to --all-users")),
        ("--min-rating 3", ("belong to --all-users",)),
        ("--all-users out.csv Heat", ("takes no titles",)),
        ("--all-users out.csv --json", ("its FILE says",)),
        ("--all-users out.txt", ("'out.txt'", ".jsonl or .csv")),
        ("--all-users out.csv --data nowhere", ("nowhere: no such folder",)),
        ("--base nowhere Heat", ("is no adapter", "nowhere has no effect")),
    ],
)
def test_options_that_make_no_sense_or_do_not_go_together_are_refused(
    options, fragments, run, tiny_model
):
    assert_one_line(run(recommend, "--weights", tiny_model, *options.split()), *fragments)


def test_data_of_which_the_catalogue_holds_nothing_is_refused(run, tiny_model, tmp_path):
    folder = write_interactions(tmp_path / "other", [("u", "a", 1)], {"a": "Another"})
    path = tmp_path / "all.csv"
    ended = run(recommend, "--weights", tiny_model, "--data", folder, "--all-users", path)
    assert_one_line(ended, folder, "none of its 1 items is a title", tiny_model, "--as-text")


def test_low_ratings_count_as_little_as_they_did_in_training(
    to_all, recommender, tiny_model, tmp_path
):
    model = changed_copy(tiny_model, tmp_path / "rated", recommender={"min_rating": 3})
    rows = [("u", "i1", 5, 1), ("u", "i2", 2, 2), ("u", "i3", 3, 3)]
    folder = write_interactions(tmp_path / "data", [(*row[:2], row[3]) for row in rows])
    lines = [",".join(map(str, row)) for row in rows]
    text = "\n".join(["user_id,item_id,rating,timestamp", *lines])
    (folder / "interactions.csv").write_text(text)
    _, recommended = to_all(folder, "-k", 3, weights=model)
    alone = recommender.recommend([MADE_UP_TITLES[1], MADE_UP_TITLES[3]], k=3)
    assert [title for title, _ in recommended["u"]] == [title for title, _ in alone]


def test_a_name_of_the_hub_that_is_no_folder_gets_the_remedy_that_training_gives(
    run, made_up_data, tmp_path
):
    name = "some-org/Some-LLM"
    asked = ("--weights", name, "--data", made_up_data, "--out", tmp_path / "out", *MADE_UP)
    of_training = run(train, *asked).err
    ended = run(recommend, "--weights", name, "Heat")
    assert_one_line(ended, f"hf download {name} --local-dir FOLDER")
    assert ended.err.partition(": ")[2] == of_training.partition(": ")[2]
