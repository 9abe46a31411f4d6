"""The stage `decoding`: its expected values, its cache, and bugs of steps alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ref import llama_numpy
from ref.golden import fast_masks
from ref.golden.copies import copy_of
from ref.golden.definitions import decoding as cached
from ref.golden.definitions.passes import Cache
from ref.golden.definitions.paths import path, row_along
from ref.golden.plants.decoding import STEPS
from ref.golden.plants.decoding_sharing import (
    longest_prefix,
    newest_page,
    shared_by_right,
    shared_by_slots,
    slots_write_into_one_page,
    taken_by_ids,
    taken_by_ids_in_pages,
    taken_page_by_page,
    whole_pages,
)
from ref.golden.plants.masks import MASKS
from ref.golden.stages.decoding import STAGE, place
from ref.masks import MaskScheme
from ref.search.cache import KVCache, drop_what_no_target_sees
from ref.search.decoder import hidden_states_with_cache

from support.golden import torch_model
from support.known_bugs import case_of, cases_of, decisive_outputs

NAMES = [case.name for case in cases_of("decoding")]
KINDS = ("ids", "segment_ids", "position_ids")


def deviation(case, name, values, expected):
    """The largest difference where values are specified, over the largest expected one."""
    is_specified = STAGE.specified(case, name, values.shape)
    difference = np.where(is_specified, np.abs(values - expected), 0)
    return np.nan_to_num(difference, nan=np.inf).max() / np.abs(case.outputs[name]).max()


@pytest.mark.parametrize("name", NAMES)
def test_decoding_with_a_cache_and_no_bug_makes_the_numbers_of_one_pass(name):
    case = case_of(name)
    outputs = STAGE.compute(copy_of(cached), case)
    for tensor, expected in case.outputs.items():
        assert deviation(case, tensor, outputs[tensor], expected) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_cache_of_the_search_with_what_it_drops_makes_the_same_numbers(name):
    case = case_of(name)
    model = torch_model(model_config(case), MaskScheme(**case.info["scheme"]), case.weights)
    cache = KVCache(model.kinds)
    prompts = [case.tensors[f"prompt_{kind}"] for kind in KINDS]
    outputs = {"prompt_logits": torch_logits(model, cache, prompts), "step_logits": []}
    if not any(holds_target(row) for row in case.rows):
        drop_what_no_target_sees(cache, model.scheme)
    for step, parents in enumerate(case.parents):
        cache = cache.rows(torch.tensor(parents.clip(0)))
        tokens = [case.tensors[f"step_{kind}"][step, :, None] for kind in KINDS]
        outputs["step_logits"].append(torch_logits(model, cache, tokens)[:, 0])
    for tensor, expected in case.outputs.items():
        assert deviation(case, tensor, np.stack(outputs[tensor]), expected) < 1e-12


def model_config(case):
    return case.config | {"rope_parameters": llama_numpy.rope_settings(case.config)}


def torch_logits(model, cache, tokens):
    """Logits (B, Q, V) of new tokens: their ids, segment ids and position ids, (B, Q) each."""
    hidden = hidden_states_with_cache(model, cache, *(torch.tensor(values) for values in tokens))
    return model.lm_head(hidden).numpy()


def holds_target(row):
    """Whether a prompt ends with a token of the target; the search puts these after a prompt."""
    return max(row["entries"]) > row["history"]


def test_a_path_is_found_by_walking_up_the_parents():
    parents = np.array([[1, 0, 0], [2, -1, 0], [2, 2, 0]])
    assert path(parents, 2, 1) == (1, [(0, 0), (1, 2), (2, 1)])
    assert path(parents, 2, 2) == (0, [(0, 2), (1, 0), (2, 2)])
    assert path(parents, -1, 1) == (1, [])


def test_a_path_from_an_empty_slot_is_refused():
    with pytest.raises(ValueError, match="nobody is in slot 1 at step 1"):
        path(np.array([[0, 0], [1, -1]]), 1, 1)


def test_the_row_of_a_path_holds_the_title_so_far():
    case = case_of("decode-delimiters-text")
    row = row_along(case.info, case.parents, 3, 1)
    assert row["items"] == ["Heat", "Toy Story", "Casino", "Dead Man Walking"]
    assert row["roles"][-4:] == ["open", "title", "title", "title"]
    assert row["entries"][-5:] == [0, 4, 4, 4, 4]


def test_ids_of_a_case_with_text_delimiters_are_those_counted_by_hand():
    case = case_of("decode-delimiters-text")
    # Seen : "Heat", "Toy Story", "Casino" \n Next : with quotes, commas and text as 0
    assert case.prompt_segment_ids.tolist() == [[0, 0, 0, 1, 0, 0, 0, 2, 2, 0, 0, 0, 3, 0, 0, 0, 0]]
    # quote; Dead, Toy; Story, Man; quote, Walking; nobody, quote
    assert case.step_segment_ids.tolist() == [[0, 0], [4, 4], [4, 4], [0, 4], [-1, 0]]
    assert case.step_position_ids[:, 1].tolist() == [17, 18, 19, 20, 21]


def test_positions_skip_padding_wherever_it_stands():
    case = case_of("decode-padding-inside")
    assert case.prompt_position_ids[0].tolist() == [0, 1, 2, 0, 0, 3, 4, 5, 0, 6, 7, 8, 9]
    assert case.step_position_ids.tolist() == [[10, 9], [11, 10], [12, 11]]


def test_prompts_share_pages_by_right_only_where_ids_and_segments_agree():
    case = case_of("decode-pages-after-others")  # the third begins with 16 tokens of the second
    assert [list(shared_by_right(case, m)) for m in range(3)] == [[], [], list(range(16))]
    assert taken_page_by_page(case, 2) == [1] * 16 + [0] * 16
    case = case_of("decode-same-tokens-other-segments")
    assert [list(shared_by_right(case, m)) for m in range(3)] == [[], [], []]
    assert longest_prefix(case, 1, ["ids"]) == (0, 18)
    # Seen : Dead Man | Walking: of the first item here, of the second there, and text in the last
    assert longest_prefix(case, 1, ["ids", "segment_ids"]) == (0, 4)
    assert longest_prefix(case, 2, ["ids", "segment_ids"]) == (0, 2)


def test_slots_share_whole_pages_that_begin_all_their_prompts():
    shared = shared_by_slots(case_of("decode-delimiters-text"), 4)  # one prompt; slot 0 is empty
    assert shared == {}  # in one slot alone
    shared = shared_by_slots(case_of("decode-delimiters-text"), 3)
    assert {w: list(indices) for w, indices in shared.items()} == {0: [*range(16)], 1: [*range(16)]}
    shared = shared_by_slots(case_of("decode-pages-after-others"), 0)
    assert {w: list(indices) for w, indices in shared.items()} == {0: [], 1: [], 2: []}


def test_what_is_shared_is_counted_without_padding():
    s = np.array([[-1, -1, *[0] * 17], [*[0] * 17, -1, -1]])
    ids = np.where(s == -1, 0, 1)
    case = SimpleNamespace(prompt_ids=ids, prompt_segment_ids=s, parents=np.array([[0, 1], [0, 1]]))
    assert list(shared_by_right(case, 1)) == [*range(16)]
    shared = shared_by_slots(case, 1)
    assert {w: list(i) for w, i in shared.items()} == {0: [*range(2, 18)], 1: [*range(16)]}


def test_slots_share_the_page_that_an_ancestor_began():
    case = case_of("decode-more-than-16-steps")  # two slots of a prompt of 11 tokens
    page = {(t, w): newest_page(case, t, w) for t in range(8) for w in range(2)}
    assert {page[t, w] for t in range(5) for w in range(2)} == {0}  # tokens 11 to 15: the prompt's
    assert [page[5, 0], page[5, 1]] == [(5, 0), (5, 1)]  # token 16 begins a page, in each slot
    assert case.parents[6:8].tolist() == [[0, 1], [1, 1]]
    assert [page[6, 0], page[6, 1], page[7, 0], page[7, 1]] == [(5, 0), (5, 1), (5, 1), (5, 1)]


def test_of_a_prompt_the_last_token_is_never_shared():
    assert [whole_pages(count, 17) for count in (15, 16, 17)] == [0, 16, 16]
    assert whole_pages(16, 16) == 0
    case = case_of("decode-same-tokens-other-segments")
    assert taken_by_ids(case, 2) == [0] * 17  # of 18 equal ones
    assert taken_by_ids_in_pages(case, 2) == [0] * 16


def test_without_a_copy_on_write_the_last_slot_of_a_page_wins():
    case = case_of("decode-padding-left")  # slots 0 to 2 of the first prompt, 3 and 4 of the other
    copy = copy_of(cached)
    slots_write_into_one_page(copy, case)
    W, P = 5, case.prompt_ids.shape[1]
    cache = Cache(None, {"layers.0": np.zeros((W, 1, P, 1))}, {"layers.0": np.zeros((W, 1, P, 1))})
    new = np.arange(W).reshape(W, 1, 1, 1)
    keys, values = copy.store(cache, new, 10 * new, "layers.0")
    assert keys[:, 0, -1, 0].tolist() == [2, 2, 2, 4, 4]
    assert values[:, 0, -1, 0].tolist() == [20, 20, 20, 40, 40]


@pytest.mark.parametrize("bug, in_both", STEPS.items())
def test_a_bug_in_steps_alone_is_told_from_one_in_prompts_too_by_the_steps(bug, in_both):
    def is_told(case):
        alone = decisive_outputs((bug,), case.name)["step_logits"]
        both = decisive_outputs((in_both,), case.name)["step_logits"]
        return deviation(case, "step_logits", alone, both) > 1e-3

    assert any(map(is_told, cases_of("decoding")))


SEQUENCES = {
    "padding": [-1, 0, 0, 1, 1, -1, 1, 2, 0, 3, 3, -1],
    "without text": [1, 1, 2, 3, 3, 4],
    "without items": [0, 0, -1, 0],
    "a number again": [1, 0, 1, 2, 2, 1],
}


@pytest.mark.parametrize("s", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("bug", MASKS)
def test_masks_by_classes_of_pairs_are_those_of_the_loops(bug, s):
    looping, fast = copy_of(llama_numpy), copy_of(llama_numpy)
    for copy in (looping, fast):
        MASKS[bug](copy, None)
    fast_masks.speed_up_masks(fast)
    for scheme in schemes():
        for kind in llama_numpy.KINDS:
            expected = looping.row_mask(kind, s, scheme)
            assert np.array_equal(fast.row_mask(kind, s, scheme), expected)


def schemes():
    for cross_self in (True, False):
        for text in ("visible", "isolated"):
            yield SimpleNamespace(intra_layers=1, cross_layers=1, cross_self=cross_self, text=text)


def test_a_place_is_told_with_prompt_text_and_segment():
    case = case_of("decode-delimiters-text")
    assert place(case, "step_logits", (3, 1, 5)) == (
        "step 3, slot 1 (prompt 0, '\"Dead Man Walking', segment 4), vocabulary 5"
    )
    assert place(case, "prompt_logits", (0, 3, 5)) == (
        "prompt 0, token 3 'Heat' (segment 1), vocabulary 5"
    )


def test_what_an_empty_slot_and_padding_give_is_free():
    case = case_of("decode-slots-end")
    assert STAGE.specified(case, "step_logits", None)[:, :, 0].tolist()[1] == [False, *[True] * 3]
    case = case_of("decode-padding-left")
    assert (
        STAGE.specified(case, "prompt_logits", None)[1, :, 0].tolist() == [False] * 5 + [True] * 7
    )
