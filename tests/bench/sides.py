"""The two sides of each row of tests/bench/bench.py: what is run, and the proof that they agree.

A setup takes the options of bench.py and returns Sides.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from ref import recommender
from ref.checkpoints import load_model
from ref.checkpoints.config import config_values, parse_config
from ref.checkpoints.weights import hf_parameters
from ref.data import dataset
from ref.llama import Llama
from ref.loss import Batch, Objective
from ref.masks import MaskScheme, build_masks
from ref.search.beam import beam_search
from ref.search.decoder import Decoder
from ref.search.exact import title_log_probs
from ref.search.item_states import ItemStates
from ref.settings import Settings
from ref.training.batches import batches_of_similar_length, titles_of_windows
from ref.training.model import prepare_model, recompute_activations
from ref.trie import build_trie

from peers import transformers_peer as peer

WIDTH = 10  # beams
TINY = Path(__file__).resolve().parents[2] / "weights" / "movielens-causal"
CAUSAL = MaskScheme()
TINY_HAT = MaskScheme(intra_layers=1, cross_layers=1)


@dataclass(frozen=True)
class Sides:
    """What is compared: prove() returns what it found, or raises ValueError where they differ.

    ours(i) and theirs(i) do the work of repeat i.
    """

    prove: Callable
    ours: Callable
    theirs: Callable


def require(condition, message):
    if not condition:
        raise ValueError(message)


# --- models and prompts


def model_135m(options, scheme=None, layers=30, vocab_size=32000):
    """A random Llama of 135 million parameters; with --small a small one."""
    layers, hidden_size, heads = (3, 48, 3) if options.small else (layers, 576, 9)
    config = parse_config(
        {
            "vocab_size": 4000 if options.small else vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "intermediate_size": 128 if options.small else 1536,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3,
            "tie_word_embeddings": True,
        }
    )
    torch.manual_seed(options.seed)
    model = Llama(config, scheme or MaskScheme(layers // 3, layers // 3)).eval()
    # far from flat: logits of standard deviation 2 or so
    model.norm.weight.data.fill_(16.0 if options.small else 5.0)
    return model


def model_tiny(scheme=CAUSAL):
    return load_model(TINY, scheme=scheme).eval()


def in_transformers(model, own_masks=False):
    """The same weights in transformers, and a function that gives it the masks of segment ids.

    own_masks: transformers makes causal masks itself, and nothing stands in their place.
    """
    config = transformers.LlamaConfig(**config_values(model.config), attn_implementation="sdpa")
    config.bos_token_id = config.eos_token_id = None  # else those of Llama 2
    theirs = transformers.LlamaForCausalLM(config).eval()
    tied = model.config.tie_word_embeddings
    theirs.load_state_dict(hf_parameters(model), strict=not tied)
    # theirs makes causal masks itself; what stands here under the number of a layer replaces them
    given = {} if own_masks else peer.give_masks(theirs)

    def give_masks(segment_ids):
        masks = build_masks(segment_ids, model.scheme)
        additive = {kind: peer.additive(masks[kind]) for kind in set(model.kinds)}
        given.update({number: additive[kind] for number, kind in enumerate(model.kinds)})

    return theirs, give_masks


def random_prompts(batch, length, options, vocabulary, target=16):
    """input_ids and segment_ids, (batch, length): text, ten items, text, a target."""
    rng = np.random.default_rng(options.seed)
    segment_ids = np.zeros((batch, length), np.int64)
    for row in segment_ids:
        history = np.arange(length // 8, length - length // 32 - target)
        borders = np.sort(rng.choice(history[1:], 9, replace=False))
        row[history] = 1 + np.searchsorted(borders, history, side="right")
        row[length - target :] = 11
    input_ids = rng.integers(10, vocabulary, (batch, length))
    return torch.from_numpy(input_ids), torch.from_numpy(segment_ids)


@dataclass(frozen=True)
class Search:
    """A decoder over the embedded catalogue, with the histories and prompts of some test users.

    objective: of the targets, for the same probabilities without a cache.
    """

    decoder: Decoder
    histories: list
    prompts: list
    objective: Objective


def search_for(model, users, softmax="full"):
    """The Search of a model for the first test users."""
    data = dataset.load()
    _, encoder, settings = recommender.load_model_and_encoder(TINY)
    settings = dataclasses.replace(settings, softmax=softmax)
    trie = build_trie(encoder, data.titles)
    histories = [window[:-1] for window in titles_of_windows(data.test[:users], data)]
    prompts = []
    for history in histories:
        titles = [data.titles[title] for title in history]
        prompts.append(encoder.encode(titles, reserve=trie.depth.max()))
    objective = Objective(encoder, trie, data.titles, settings, "target")
    return Search(Decoder(model, trie, settings), histories, prompts, objective)


def tiny_users(options):
    return 4 if options.small else 64


def large_users(options):
    return 2 if options.small else 8


# --- proofs


def relative_difference(ours, theirs):
    """Greatest difference over the greatest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def compare_gradients(ours, theirs):
    """A step of each without the optimizer: every gradient must agree."""
    losses = ours.backward(0).item(), theirs.backward(0).item()
    our_parameters = hf_parameters(ours.model)
    their_parameters = dict(theirs.model.named_parameters())
    require(
        our_parameters.keys() == their_parameters.keys(),
        "the two models do not have the same parameters",
    )
    worst = max(
        relative_difference(p.grad, their_parameters[name].grad)
        for name, p in our_parameters.items()
    )
    require(
        worst < 1e-3 and abs(losses[0] - losses[1]) < 1e-4,
        f"gradients differ by {worst:.1e}, losses are {losses}",
    )
    return f"losses {losses[0]:.5f} and {losses[1]:.5f}, gradients differ by {worst:.1e}"


def compare_lists(ours, theirs):
    """Both: [[(title, score), ...], ...], a list for each user.

    A title may stand elsewhere only where the scores in question are within 1e-4.
    """
    same = sum(titles_of(a) == titles_of(b) for a, b in zip(ours, theirs))
    our_scores, their_scores = scores_of(ours), scores_of(theirs)
    require(
        our_scores.shape == their_scores.shape,
        f"lists of different lengths: {our_scores.shape}, {their_scores.shape}",
    )
    worst = np.abs(our_scores - their_scores).max()
    require(worst < 1e-4, f"scores differ by {worst:.1e}; {same} of {len(ours)} lists are the same")
    for a, b in zip(ours, theirs):
        score_there = dict(b)
        last = b[-1][1]
        moved = [title for title, score in a if abs(score_there.get(title, last) - score) > 1e-4]
        require(not moved, f"titles {moved} are ranked elsewhere, and no tie explains it")
    return (
        f"{same} of {len(ours)} lists the same ({len(ours) - same} differ in ties), "
        f"scores within {worst:.1e}"
    )


def titles_of(best):
    return [title for title, _ in best]


def scores_of(lists):
    return np.array([[score for _, score in best] for best in lists])


@torch.inference_mode()
def plain_scores(model, objective, batches):
    """Log-probability of each window's target: each a sequence of its own, without a cache."""
    scores = []
    for batch in batches:
        log_probs = objective.token_log_probs(model, batch).double().numpy()
        scores.append(np.bincount(batch.rows.numpy(), log_probs, len(batch.input_ids)))
    return np.concatenate(scores)


# --- forward and training


def forward(options):
    model = model_135m(options)
    theirs, give_masks = in_transformers(model)
    shape = (2, 96) if options.small else (8, 256)
    input_ids, segment_ids = random_prompts(*shape, options, model.config.vocab_size)

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

    return Sides(prove, run_ours, run_theirs)


class Training:
    """Steps of a model; `backward(i)` of a subclass makes the gradients of batch i."""

    def __init__(self, model, options):
        self.model = model.train()
        self.optimizer = train.make_optimizer(model.parameters(), options)

    def step(self, i):
        self.backward(i)
        self.optimizer.step()
        self.optimizer.zero_grad()


class OurTraining(Training):
    """full_batches: the same batches with the full softmax; they say how many tokens count."""

    def __init__(self, model, options, objective, batches, full_batches):
        super().__init__(model, options)
        self.objective = objective
        self.batches = batches
        self.full_batches = full_batches

    def backward(self, i):
        place = i % len(self.batches)
        nats = self.objective.summed_nll(self.model, self.batches[place])
        # a mean over all tokens, as theirs
        loss = nats / self.full_batches[place].rows.numel()
        loss.backward()
        return loss


class TheirTraining(Training):
    def __init__(self, model, options, give_masks, batches):
        super().__init__(model, options)
        self.give_masks = give_masks
        self.batches = batches

    def backward(self, i):
        batch = self.batches[i % len(self.batches)]
        self.give_masks(batch.segment_ids)
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.rows, batch.columns] = batch.input_ids[batch.rows, batch.columns]
        loss = self.model(batch.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        return loss


def training_sides(model, options, objective, batches, full_batches):
    """Training steps, theirs with the full softmax. options: those of train.py."""
    theirs, give_masks = in_transformers(model)
    our_training = OurTraining(model, options, objective, batches, full_batches)
    their_training = TheirTraining(theirs, options, give_masks, full_batches)

    def prove():
        if objective.settings.softmax != "full":
            return "not the same loss: for information"
        proof = compare_gradients(our_training, their_training)
        our_training.optimizer.zero_grad()
        their_training.optimizer.zero_grad()
        return proof

    return Sides(prove, our_training.step, their_training.step)


def step_135m(options):
    """Steps on the targets alone, the last item of each prompt."""
    model = model_135m(options)
    shape = (2, 96) if options.small else (4, 256)
    input_ids, segment_ids = random_prompts(*shape, options, model.config.vocab_size)
    return random_steps(model, input_ids, segment_ids, segment_ids == 11)


def step_all(options, recompute=False):
    """Steps on every token but the first of a prompt, with a vocabulary of 128,000.

    recompute: ours as with --checkpoint-activations.
    """
    model = model_135m(options, vocab_size=128_000)
    shape = (2, 96) if options.small else (4, 512)
    input_ids, segment_ids = random_prompts(*shape, options, model.config.vocab_size)
    is_predicted = torch.ones_like(segment_ids, dtype=torch.bool)
    is_predicted[:, 0] = False
    if recompute:
        recompute_activations(model)
    return random_steps(model, input_ids, segment_ids, is_predicted)


def random_steps(model, input_ids, segment_ids, is_predicted):
    rows, columns = is_predicted.nonzero(as_tuple=True)
    batch = Batch(
        input_ids,
        segment_ids,
        rows,
        columns,
        nodes=None,
        num_predicted=len(input_ids),
        real_tokens=segment_ids.numel(),
        dropped=0,
    )
    objective = Objective(None, None, (), Settings(), "target")  # "full" needs no catalogue
    train_options = train.parse_options(["--lr", "1e-4"])
    return training_sides(model, train_options, objective, [batch], [batch])


def step_tiny(options, softmax="full"):
    """Real windows in batches of similar length; dropout 0 (transformers has none there)."""
    batch_size = 8 if options.small else 64
    words = f"--dropout 0 --softmax {softmax} --batch-size {batch_size}".split()
    train_options = train.parse_options(words)
    data = dataset.load()
    model, encoder, settings = prepare_model(train_options, data)
    trie = build_trie(encoder, data.titles)
    full_settings = dataclasses.replace(settings, softmax="full")
    objective = Objective(encoder, trie, data.titles, settings, "titles")
    full_objective = Objective(encoder, trie, data.titles, full_settings, "titles")
    rng = np.random.default_rng(options.seed)
    windows = data.training_windows("titles", rng)
    batches = batches_of_similar_length(windows, data, objective, batch_size, rng)
    items = [titles_of_windows(batch, data) for batch in batches[: options.repeats]]
    return training_sides(
        model,
        train_options,
        objective,
        batches=[objective.batch(batch) for batch in items],
        full_batches=[full_objective.batch(batch) for batch in items],
    )


def masks(options, setup):
    """Time of build_masks against that of a whole training step of ours, as `setup` makes it."""
    step = setup(options).ours
    with mock.patch("ref.llama.build_masks", side_effect=build_masks) as counted:
        step(0)
    segment_ids, scheme, *_ = counted.call_args.args

    def prove():
        calls = counted.call_count
        require(calls == 1, f"a step called build_masks {calls} times")
        return "a step calls build_masks once"

    return Sides(prove, lambda i: build_masks(segment_ids, scheme), step)


# --- search


class GeneratedSearch:
    """Our beam search by transformers' `generate`, over the titles of a trie.

    While it generates, the tokens allowed after a prefix come out of a dictionary of tensors.
    """

    def __init__(self, theirs, trie, prompts):
        self.theirs = theirs
        self.prompts = prompts
        self.longest_prompt = max(len(prompt.input_ids) for prompt in prompts)
        self.longest_title = int(trie.depth.max())
        ends = {int(token) for token in trie.token[trie.leaf]}
        require(len(ends) == 1, f"titles end with different tokens {ends}")
        (self.end,) = ends
        self.prefix = [()]  # of each node, its tokens from the root
        for node in range(1, len(trie.token)):
            self.prefix.append((*self.prefix[trie.parent[node]], int(trie.token[node])))
        self.children = {}
        for node in np.flatnonzero(trie.num_children):
            first = trie.first_child[node]
            tokens = trie.token[first : first + trie.num_children[node]]
            self.children[self.prefix[node]] = torch.from_numpy(tokens)
        self.title_of = {self.prefix[leaf]: int(trie.title[leaf]) for leaf in trie.leaf}
        self.anything = torch.tensor([self.end])  # what a finished beam may say: it is asked too

    def allowed_tokens(self, _, tokens):
        return self.children.get(tuple(tokens[self.longest_prompt :].tolist()), self.anything)

    def padded_prompts(self):
        """input_ids and attention_mask, padded on the left."""
        shape = (len(self.prompts), self.longest_prompt)
        input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, prompt in enumerate(self.prompts):
            begin = self.longest_prompt - len(prompt.input_ids)
            input_ids[row, begin:] = prompt.input_ids
            attention_mask[row, begin:] = 1
        return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)

    @torch.inference_mode()
    def generate(self, scores=False):
        input_ids, attention_mask = self.padded_prompts()
        return self.theirs.generate(
            input_ids,
            attention_mask=attention_mask,
            do_sample=False,
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            length_penalty=0.0,
            early_stopping="never",
            prefix_allowed_tokens_fn=self.allowed_tokens,
            max_new_tokens=self.longest_title,
            eos_token_id=self.end,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=scores,
        )

    def lists(self):
        """The best titles of each prompt, [[(title, score), ...], ...]."""
        out = self.generate(scores=True)
        pairs = []
        rows = out.sequences[:, self.longest_prompt :].tolist()
        for tokens, score in zip(rows, out.sequences_scores.tolist()):
            tokens = tokens[: tokens.index(self.end) + 1]
            pairs.append((self.title_of[tuple(tokens)], score))
        return [pairs[i : i + WIDTH] for i in range(0, len(pairs), WIDTH)]


def search_sides(model, users):
    search = search_for(model, users)
    theirs, _ = in_transformers(model, own_masks=True)
    generated = GeneratedSearch(theirs, search.decoder.trie, search.prompts)

    def run_ours(_):
        return beam_search(search.decoder, search.prompts, WIDTH)

    return Sides(
        prove=lambda: compare_lists(run_ours(0), generated.lists()),
        ours=run_ours,
        theirs=lambda i: generated.generate(),
    )


def beam_tiny(options):
    return search_sides(model_tiny(), tiny_users(options))


def beam_135m(options):
    return search_sides(model_135m(options, CAUSAL), large_users(options))


def hat_tiny(options):
    return hat_sides(model_tiny(TINY_HAT), model_tiny(CAUSAL), tiny_users(options))


def hat_135m(options):
    return hat_sides(model_135m(options), model_135m(options, CAUSAL), large_users(options))


def hat_sides(hat_model, causal_model, users):
    """HatLLM masks against causal ones, both ours; lists are proven against plain sequences.

    Other masks choose other titles, of other lengths. So that the same number of tokens is
    computed, both sides are led along the path of the search with HatLLM masks.
    """
    searches = search_for(hat_model, users), search_for(causal_model, users)
    recorded = RecordedDecoder(searches[0].decoder)
    wanted = beam_search(recorded, searches[0].prompts, WIDTH)

    def led(search):
        decoder = LedDecoder(search.decoder, recorded.answers)
        found = beam_search(decoder, search.prompts, WIDTH)
        require(found == wanted, "a search that was led came to other titles")
        return decoder

    def prove():
        worst = max(difference_to_plain_scores(search) for search in searches)
        require(worst < 1e-4, f"scores differ from the plain path by {worst:.1e}")
        unasked = [len(list(led(search).answers)) for search in searches]
        require(unasked == [0, 0], f"searches that were led left {unasked} answers")
        return (
            f"scores differ from the plain path by {worst:.1e}; led along one path, both searches "
            f"take {len(recorded.answers)} forward passes"
        )

    hat, causal = searches
    return Sides(prove, ours=lambda i: led(hat), theirs=lambda i: led(causal))


class RecordedDecoder(Decoder):
    """A decoder that keeps what it said of the children of nodes."""

    def __init__(self, decoder):
        super().__init__(decoder.model, decoder.trie, decoder.settings)
        self.answers = []

    def child_log_probs(self, nodes, hidden):
        self.answers.append(super().child_log_probs(nodes, hidden))
        return self.answers[-1]


class LedDecoder(Decoder):
    """A decoder that computes all it is asked for, and then says what another one said."""

    def __init__(self, decoder, answers):
        super().__init__(decoder.model, decoder.trie, decoder.settings)
        self.answers = iter(answers)

    def child_log_probs(self, nodes, hidden):
        super().child_log_probs(nodes, hidden)
        return next(self.answers)


def difference_to_plain_scores(search):
    """Greatest difference of the scores of two users' lists to those of plain sequences."""
    worst = 0
    lists = beam_search(search.decoder, search.prompts[:2], WIDTH)
    for history, best in zip(search.histories, lists):
        batch = search.objective.batch([np.append(history, title) for title, _ in best])
        plain = plain_scores(search.decoder.model, search.objective, [batch])
        worst = max(worst, np.abs(plain - [score for _, score in best]).max())
    return worst


def cache_items_tiny(options):
    scheme = MaskScheme(2, 1, text="isolated")
    return cache_items_sides(model_tiny(scheme), users=64)


def cache_items_135m(options):
    layers = 3 if options.small else 30
    scheme = MaskScheme(layers // 2, layers // 4, text="isolated")
    return cache_items_sides(model_135m(options, scheme), large_users(options))


def cache_items_sides(model, users):
    """Prompts that start after the IN layers, from states of their items, against all layers."""
    search, data = search_for(model, users), dataset.load()
    seen = sorted({title for history in search.histories for title in history})
    encoder = search.objective.encoder
    item_states = ItemStates(model, encoder, [data.titles[title] for title in seen])
    plain = search.decoder
    cached = Decoder(model, plain.trie, plain.settings, item_states)

    @torch.inference_mode()
    def last_hidden_states(decoder):
        _, last_hidden = decoder.read_prompts(search.prompts)
        return last_hidden

    def prove():
        apart = relative_difference(last_hidden_states(cached), last_hidden_states(plain))
        require(apart < 1e-4, f"last hidden states differ by {apart:.1e}")
        return f"last hidden states of {len(search.prompts)} users differ by at most {apart:.1e}"

    return Sides(prove, lambda i: last_hidden_states(cached), lambda i: last_hidden_states(plain))


def full_ranking(options, softmax="catalogue"):
    search = search_for(model_tiny(), 1 if options.small else 3, softmax)
    decoder, objective = search.decoder, search.objective
    titles = np.arange(len(decoder.trie.leaf))
    batches = []
    for history in search.histories:
        for begin in range(0, len(titles), 256):
            windows = [np.append(history, title) for title in titles[begin : begin + 256]]
            batches.append(objective.batch(windows))

    def run_ours(_):
        return title_log_probs(decoder, search.prompts)

    def run_theirs(_):
        return plain_scores(decoder.model, objective, batches).reshape(len(search.prompts), -1)

    def prove():
        worst = np.abs(run_ours(0) - run_theirs(0)).max()
        require(worst < 1e-4, f"log-probabilities differ by {worst:.1e}")
        return f"log-probabilities of {len(titles)} titles differ by at most {worst:.1e}"

    return Sides(prove, run_ours, run_theirs)
