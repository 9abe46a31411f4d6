"""The two sides of each row of tests/bench/bench.py: what is run, and the proof that both compute the same.

A setup takes the options of bench.py and returns (prove, ours, theirs); ours(i) and theirs(i) do the
work of repeat i.
"""

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import evaluate
import train
from ref import recommender
from ref.checkpoints import load_model
from ref.checkpoints.config import config_values, parse_config
from ref.checkpoints.weights import hf_parameters
from ref.data import dataset
from ref.llama import Llama, LlamaConfig
from ref.loss import Batch, Objective
from ref.masks import MaskScheme, build_masks
from ref.search.decoder import Decoder
from ref.search.item_states import ItemCache
from ref.settings import Settings

from peers import transformers_peer as peer

WIDTH = 10  # beams
TINY = ROOT / "weights" / "movielens-causal"
CAUSAL, TINY_HAT = MaskScheme(), MaskScheme(intra_layers=1, cross_layers=1)


def require(condition, message):
    if not condition:
        raise ValueError(message)


def model_135m(options, scheme=None, layers=30):
    """A random Llama of 135 million parameters (--small: a small one); its logits are far from flat."""
    layers, hidden, heads = (3, 48, 3) if options.small else (layers, 576, 9)
    config = parse_config(
        {
            "vocab_size": 4000 if options.small else 32000,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "intermediate_size": 128 if options.small else 1536,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3,
            "tie_word_embeddings": True,
        }
    )
    torch.manual_seed(options.seed)
    model = Llama(config, scheme or MaskScheme(layers // 3, layers // 3)).eval()
    model.norm.weight.data.fill_(
        16.0 if options.small else 5.0
    )  # logits of standard deviation 2 or so
    return model


def model_tiny(scheme=CAUSAL):
    return load_model(TINY, scheme=scheme).eval()


def in_transformers(model, own_masks=False):
    """The same weights in transformers, and a function that gives it the masks of some segment ids.

    own_masks: transformers makes causal masks itself, and nothing stands in their place.
    """
    os.environ["PEER_ATTENTION"] = "sdpa"
    weights = {name: p.detach().numpy() for name, p in hf_parameters(model).items()}
    theirs, given = peer.load(SimpleNamespace(config=config_values(model.config), weights=weights))
    kinds, scheme = model.scheme.kinds(len(model.layers)), model.scheme
    if own_masks:
        for layer in theirs.model.layers:
            layer.self_attn._forward_pre_hooks.clear()

    def give_masks(segment_ids):
        masks = build_masks(segment_ids, scheme)
        additive = {kind: peer.additive(masks[kind]) for kind in set(kinds)}
        given.update({layer: additive[kind] for layer, kind in enumerate(kinds)})

    return theirs, give_masks


def random_prompts(batch, length, options, vocabulary, target=16):
    """input_ids, segment_ids (batch, length): text, ten entries of random lengths, text, a target."""
    rng = np.random.default_rng(options.seed)
    segment_ids = np.zeros((batch, length), np.int64)
    for row in segment_ids:
        history = np.arange(length // 8, length - length // 32 - target)
        borders = np.sort(rng.choice(history[1:], 9, replace=False))
        row[history] = 1 + np.searchsorted(borders, history, side="right")
        row[length - target :] = 11
    return torch.from_numpy(rng.integers(10, vocabulary, (batch, length))), torch.from_numpy(
        segment_ids
    )


def recommending(model, users, softmax="full"):
    """A decoder of the embedded catalogue, and the first test users: prompts, histories, an objective."""
    data = dataset.load()
    _, encoder, settings = recommender.load(TINY)
    settings = dataclasses.replace(settings, softmax=softmax)
    trie = recommender.build_trie(encoder, data.titles)
    windows = data.test[:users]
    histories = [data.entries[start : end - 1] for start, end in zip(windows.starts, windows.ends)]
    return SimpleNamespace(
        decoder=Decoder(model, trie, settings),
        trie=trie,
        histories=histories,
        prompts=[
            encoder.encode([data.titles[i] for i in h], reserve=trie.depth.max()) for h in histories
        ],
        objective=Objective(encoder, trie, data.titles, settings, "target"),
    )


def relative_difference(ours, theirs):
    """Greatest difference over the greatest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def prove_gradients(ours, theirs):
    """Run a step of each without the optimizer; every gradient must agree."""
    losses = ours().item(), theirs().item()
    found = {name: p.grad for name, p in hf_parameters(ours.model).items()}
    expected = {name: p.grad for name, p in theirs.model.named_parameters()}
    require(found.keys() == expected.keys(), "the two models do not have the same parameters")
    worst = max(relative_difference(found[name], expected[name]) for name in found)
    require(
        worst < 1e-3 and abs(losses[0] - losses[1]) < 1e-4,
        f"gradients differ by {worst:.1e}, losses are {losses}",
    )
    return f"losses {losses[0]:.5f} and {losses[1]:.5f}, gradients differ by {worst:.1e}"


def compare_lists(ours, theirs):
    """Both: [[(title, score), ...], ...]. A user may differ only where the scores in question are within 1e-4."""
    same = sum([title for title, _ in a] == [title for title, _ in b] for a, b in zip(ours, theirs))
    scores = [
        np.array([[score for _, score in found] for found in side]) for side in (ours, theirs)
    ]
    require(
        scores[0].shape == scores[1].shape,
        f"lists of different lengths: {scores[0].shape}, {scores[1].shape}",
    )
    worst = np.abs(scores[0] - scores[1]).max()
    require(worst < 1e-4, f"scores differ by {worst:.1e}; {same} of {len(ours)} lists are the same")
    for a, b in zip(
        ours, theirs
    ):  # a title that moved must have moved among titles of (nearly) the same score
        place = dict(b)
        far = [title for title, score in a if abs(place.get(title, b[-1][1]) - score) > 1e-4]
        require(not far, f"titles {far} are ranked elsewhere, and no tie explains it")
    return f"{same} of {len(ours)} lists the same ({len(ours) - same} differ in ties), scores within {worst:.1e}"


def forward(options):
    model = model_135m(options)
    theirs, give_masks = in_transformers(model)
    input_ids, segment_ids = random_prompts(
        *((2, 96) if options.small else (8, 256)), options, model.config.vocab_size
    )

    @torch.inference_mode()
    def run_ours(_):
        return model(input_ids, segment_ids)

    @torch.inference_mode()
    def run_theirs(_):
        give_masks(segment_ids)
        return theirs(input_ids, use_cache=False).logits

    def prove():
        difference = relative_difference(run_ours(0), run_theirs(0))
        require(difference < 1e-4, f"logits differ by {difference:.1e} of the greatest")
        return f"logits differ by {difference:.1e} of the greatest"

    return prove, run_ours, run_theirs


def training(model, objectives, batches, weight_decay_of):
    """(prove, ours, theirs): training steps; objectives and batches of our side and of theirs (full softmax)."""
    theirs, give_masks = in_transformers(model)
    model.train(), theirs.train()
    optimizers = [
        train.make_optimizer(side.parameters(), weight_decay_of) for side in (model, theirs)
    ]

    def our_loss(i=0):
        log_probs = objectives[0].token_log_probs(model, batches[0][i % len(batches[0])])
        loss = (
            -log_probs.sum() / batches[1][i % len(batches[0])].rows.numel()
        )  # a mean over all tokens, as theirs
        loss.backward()
        return loss

    def their_loss(i=0):
        batch = batches[1][i % len(batches[1])]
        give_masks(batch.segment_ids)
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.rows, batch.places] = batch.input_ids[batch.rows, batch.places]
        loss = theirs(batch.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        return loss

    def step(compute, optimizer):
        def run(i):
            compute(i)
            optimizer.step()
            optimizer.zero_grad()

        return run

    our_loss.model, their_loss.model = model, theirs

    def prove():
        if objectives[0].settings.softmax != "full":
            return "not the same loss: for information"
        found = prove_gradients(our_loss, their_loss)
        [optimizer.zero_grad() for optimizer in optimizers]
        return found

    return prove, step(our_loss, optimizers[0]), step(their_loss, optimizers[1])


def batch_135m(options, vocabulary):
    """A batch of random prompts with the loss on the target, as Objective makes it."""
    input_ids, segment_ids = random_prompts(
        *((2, 96) if options.small else (4, 256)), options, vocabulary
    )
    rows, places = (segment_ids == 11).nonzero(as_tuple=True)
    return Batch(input_ids, segment_ids, rows, places, None, len(input_ids), segment_ids.numel(), 0)


def step_135m(options):
    model = model_135m(options)
    objective = Objective(None, None, (), Settings(), "target")  # softmax "full" needs no catalogue
    batch = batch_135m(options, model.config.vocab_size)
    return training(model, [objective] * 2, [[batch]] * 2, train.parse_options(["--lr", "1e-4"]))


def step_tiny(options, softmax="full"):
    """Real windows in batches of similar length, dropout 0 (transformers has none at these places)."""
    settings = train.parse_options(
        ["--dropout", "0", "--softmax", softmax, "--batch-size", "8" if options.small else "64"]
    )
    data = dataset.load()
    model, encoder, ours = train.prepare(settings, data)
    trie, rng = recommender.build_trie(encoder, data.titles), np.random.default_rng(options.seed)
    full = dataclasses.replace(ours, softmax="full")
    objectives = [Objective(encoder, trie, data.titles, side, "titles") for side in (ours, full)]
    windows = data.training_windows("titles", rng)
    chosen = train.batches_of_similar_length(
        windows, data, objectives[0], settings.batch_size, rng
    )[: options.repeats]
    batches = [[side.batch(train.entries_of(some, data)) for some in chosen] for side in objectives]
    return training(model, objectives, batches, settings)


def masks(options, tiny):
    """Time of build_masks against that of a whole training step of ours."""
    prove_step, step, _ = (step_tiny if tiny else step_135m)(options)
    calls = []
    with mock.patch(
        "ref.llama.build_masks", side_effect=lambda *a: calls.append(a) or build_masks(*a)
    ):
        step(0)
    segment_ids, scheme, _ = calls[0]

    def prove():
        require(len(calls) == 1, f"a step called build_masks {len(calls)} times")
        return "a step calls build_masks once"

    return prove, lambda i: build_masks(segment_ids, scheme), lambda i: step(0)


def generating(theirs, world):
    """A function (scores=False) that does our beam search by `generate`: [[(title, score), ...], ...] with scores."""
    trie, prompts, children = world.trie, world.prompts, {}
    lengths = [len(prompt.input_ids) for prompt in prompts]
    end = {int(token) for token in trie.token[trie.leaf]}
    require(len(end) == 1, f"titles end with different tokens {end}")
    (end,) = end
    prefix = [()]
    for node in range(1, len(trie.token)):
        prefix.append((*prefix[trie.parent[node]], int(trie.token[node])))
    for node in np.flatnonzero(trie.num_children):
        first = trie.first_child[node]
        children[prefix[node]] = torch.from_numpy(
            trie.token[first : first + trie.num_children[node]]
        )
    title_of = {prefix[leaf]: int(trie.title[leaf]) for leaf in trie.leaf}
    dead, longest = (
        torch.tensor([end]),
        max(lengths),
    )  # a finished beam is asked too, and may say anything

    @torch.inference_mode()
    def run(scores=False):
        input_ids, attention_mask = np.zeros((2, len(prompts), longest), np.int64)
        for row, (prompt, length) in enumerate(zip(prompts, lengths)):
            input_ids[row, longest - length :], attention_mask[row, longest - length :] = (
                prompt.input_ids,
                1,
            )
        out = theirs.generate(
            torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            do_sample=False,
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            length_penalty=0.0,
            early_stopping="never",
            prefix_allowed_tokens_fn=lambda _, tokens: children.get(
                tuple(tokens[longest:].tolist()), dead
            ),
            max_new_tokens=int(trie.depth.max()),
            eos_token_id=end,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=scores,
        )
        if not scores:
            return None
        tokens = (row[: row.index(end) + 1] for row in out.sequences[:, longest:].tolist())
        pairs = [
            (title_of[tuple(row)], score)
            for row, score in zip(tokens, out.sequences_scores.tolist())
        ]
        return [pairs[i : i + WIDTH] for i in range(0, len(pairs), WIDTH)]

    return run


def beam_search(options, model, users):
    world = recommending(model, users)
    generate = generating(in_transformers(model, own_masks=True)[0], world)

    def run_ours(_):
        return world.decoder.beam_search(world.prompts, WIDTH)

    return lambda: compare_lists(run_ours(0), generate(scores=True)), run_ours, lambda i: generate()


def tiny_users(options):
    return 4 if options.small else 64


def large_users(options):
    return 2 if options.small else 8


def beam_tiny(options):
    return beam_search(options, model_tiny(), tiny_users(options))


def beam_135m(options):
    return beam_search(options, model_135m(options, CAUSAL), large_users(options))


@torch.inference_mode()
def plain_scores(model, objective, batches):
    """Log-probability of each window's target: every window a sequence of its own, no cache, no sharing."""
    return np.concatenate(
        [
            np.bincount(
                batch.rows.numpy(),
                objective.token_log_probs(model, batch).double().numpy(),
                len(batch.input_ids),
            )
            for batch in batches
        ]
    )


def forward_passes(world):
    """How many a search takes: other masks find other titles, of other lengths."""
    with mock.patch.object(
        Llama, "hidden_states", autospec=True, side_effect=Llama.hidden_states
    ) as forward:
        world.decoder.beam_search(world.prompts, WIDTH)
    return str(forward.call_count)


def beam_hat(options, tiny):
    """HatLLM masks against causal ones, both ours; each list proven against plain sequences."""
    schemes = (TINY_HAT if tiny else None), CAUSAL
    models = [model_tiny(scheme) if tiny else model_135m(options, scheme) for scheme in schemes]
    worlds = [
        recommending(model, (tiny_users if tiny else large_users)(options)) for model in models
    ]

    def prove():
        worst = 0
        for world in worlds:
            for history, found in zip(
                world.histories[:2], world.decoder.beam_search(world.prompts[:2], WIDTH)
            ):
                batch = world.objective.batch([np.append(history, title) for title, _ in found])
                plain = plain_scores(world.decoder.model, world.objective, [batch])
                worst = max(worst, np.abs(plain - [score for _, score in found]).max())
        require(worst < 1e-4, f"scores differ from the plain path by {worst:.1e}")
        return f"scores differ from the plain path by {worst:.1e}; the searches take {' and '.join(map(forward_passes, worlds))} forward passes"

    ours, causal = (lambda i, w=world: w.decoder.beam_search(w.prompts, WIDTH) for world in worlds)
    return prove, ours, causal


def cache_items(options, tiny):
    """Prompts that start at layer intra_layers, from cached states of their items, against whole prompts."""
    layers = 4 if tiny else 3 if options.small else 30
    scheme = MaskScheme(layers // 2, layers // 4, text="isolated")
    model = model_tiny(scheme) if tiny else model_135m(options, scheme)
    world, data = recommending(model, 64 if tiny else large_users(options)), dataset.load()
    seen = sorted({title for history in world.histories for title in history})
    cache = ItemCache(model, recommender.load(TINY)[1], [data.titles[title] for title in seen])
    cached = Decoder(model, world.trie, world.decoder.settings, cache)

    def run(decoder):
        with torch.inference_mode():
            return decoder._read_prompts(world.prompts)[1]

    def prove():
        apart = relative_difference(run(cached), run(world.decoder))
        require(apart < 1e-4, f"last hidden states differ by {apart:.1e}")
        return f"last hidden states of {len(world.prompts)} users differ by at most {apart:.1e}"

    return prove, lambda _: run(cached), lambda _: run(world.decoder)


def full_ranking(options, softmax):
    world = recommending(model_tiny(), 1 if options.small else 3, softmax)
    model, objective, titles = world.decoder.model, world.objective, np.arange(len(world.trie.leaf))
    batches = [
        objective.batch([np.append(history, title) for title in titles[i : i + 256]])
        for history in world.histories
        for i in range(0, len(titles), 256)
    ]

    def run_ours(_):
        return world.decoder.title_log_probs(world.prompts)

    def run_theirs(_):
        return plain_scores(model, objective, batches).reshape(len(world.prompts), -1)

    def prove():
        worst = np.abs(run_ours(0) - run_theirs(0)).max()
        require(worst < 1e-4, f"log-probabilities differ by {worst:.1e}")
        return f"log-probabilities of {len(titles)} titles differ by at most {worst:.1e}"

    return prove, run_ours, run_theirs
