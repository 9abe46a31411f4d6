"""An engine with pages, chunks and shared prefixes, in NumPy float64; model and decoding.

python -m ref.golden run tests/peers/paged_port.py
PAGE=16 CHUNK=512 python -m ref.golden run tests/peers/paged_port.py

A request is a row without padding. A batch holds new tokens of several requests, one after the
other on one axis: a chunk of a prompt, or the one token of a slot. Shapes:

    L layers   H heads   K key/value heads   D head dim   C hidden size   V vocabulary
    T tokens of a batch   n new tokens of a request   N tokens of a request so far
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

PAGE = int(os.environ.get("PAGE", "4"))  # tokens of a page
CHUNK = int(os.environ.get("CHUNK", "5"))  # tokens of a prompt that are computed at once


def run(case):
    """Logits of a golden case."""
    if case.stage == "model":
        return model_logits(case)
    if case.stage == "decoding":
        return decoding_logits(case)
    raise NotImplementedError("only the stages model and decoding")


class Tokens(NamedTuple):
    """Tokens without padding: lists of their ids, segment ids and position ids."""

    ids: list
    segments: list
    positions: list

    def cut(self, begin, end):
        return Tokens(*(values[begin:end] for values in self))


@dataclass
class Request:
    """The pages that hold the tokens of a row so far, and how many tokens these are."""

    pages: list = field(default_factory=list)
    length: int = 0


# Masks


def kind_of_layer(i, L, scheme):
    if i < scheme.intra_layers:
        return "IN"
    return "CR" if i >= L - scheme.cross_layers else "OR"


def allowed(kind, scheme, segments, n):
    """Which of the N keys each of the last n tokens may attend to: bool (n, N).

    segments: (N,), those of all tokens so far, also of those in shared pages.
    """
    N = len(segments)
    j, k = np.arange(N - n, N)[:, None], np.arange(N)[None]  # indices in the request
    s_j, s_k = segments[j], segments[k]
    is_allowed = k <= j
    if kind == "IN" and scheme.text == "visible":
        is_allowed &= (s_j == 0) | (s_k == 0) | (s_k == s_j)
    if kind == "IN" and scheme.text == "isolated":
        is_allowed &= (s_j == 0) | (s_k == s_j)
    if kind == "CR":
        is_allowed &= (s_j == 0) | (s_k != s_j) | ((k == j) & scheme.cross_self)
    return is_allowed


def attend(q, keys, values, is_allowed):
    """q (n, H, D), keys and values (N, K, D), is_allowed (n, N) -> (n, H, D), page by page."""
    n, H, D = q.shape
    heads_per_key = H // keys.shape[1]
    largest, total = np.full((n, H), -np.inf), np.zeros((n, H))
    mixed = np.zeros((n, H, D))
    for begin in range(0, len(keys), PAGE):
        page = slice(begin, begin + PAGE)
        k = np.repeat(keys[page], heads_per_key, axis=1)
        v = np.repeat(values[page], heads_per_key, axis=1)
        scores = np.einsum("nhd,khd->nhk", q, k) / np.sqrt(D)
        scores = np.where(is_allowed[:, None, page], scores, -np.inf)
        new_largest = np.maximum(largest, scores.max(axis=-1))
        subtracted = np.where(np.isinf(new_largest), 0, new_largest)  # -inf: no key so far
        kept = np.exp(largest - subtracted)
        weights = np.exp(scores - subtracted[..., None])
        total = total * kept + weights.sum(axis=-1)
        mixed = mixed * kept[..., None] + np.einsum("nhk,khd->nhd", weights, v)
        largest = new_largest
    is_empty = total == 0  # after all pages: such a row attends to itself alone
    own = np.repeat(values[-n:], heads_per_key, axis=1)
    return np.where(is_empty[..., None], own, mixed / np.where(is_empty, 1, total)[..., None])


# Pages


class Pool:
    """Pages of keys and values, and beside each key the segment id of its token."""

    def __init__(self, config):
        self.shape_of_page = (PAGE, config["num_key_value_heads"], config["head_dim"])
        self.num_layers = config["num_hidden_layers"]
        self.keys, self.values, self.segments = [], [], []  # of each page, of all layers
        self.num_users = Counter()  # how many requests hold a page
        self.page_with = {}  # what a page holds, and all pages before it -> its number

    def new_page(self):
        """The number of a page that nobody holds: the first such page, or one more."""
        page = next((p for p in range(len(self.keys)) if not self.num_users[p]), None)
        if page is None:
            page = len(self.keys)
            self.keys.append(np.zeros((self.num_layers, *self.shape_of_page)))
            self.values.append(np.zeros((self.num_layers, *self.shape_of_page)))
            self.segments.append(np.full(PAGE, -1))
        # what it held can no longer be shared
        self.page_with = {content: p for content, p in self.page_with.items() if p != page}
        self.num_users[page] = 1
        return page

    def append(self, request, segments):
        """Note the segment ids of new tokens of a request: [(page, place in it), ...] of each."""
        places = []
        for segment in segments:
            place = request.length % PAGE
            if place == 0:
                request.pages.append(self.new_page())
            elif self.num_users[request.pages[-1]] > 1:
                request.pages[-1] = self.own_copy(request.pages[-1])
            self.segments[request.pages[-1]][place] = segment
            places.append((request.pages[-1], place))
            request.length += 1
        return places

    def own_copy(self, page):
        """Copy on write: another request goes on in this page, too."""
        copy = self.new_page()
        for of_pages in (self.keys, self.values, self.segments):
            of_pages[copy][...] = of_pages[page]
        self.num_users[page] -= 1
        return copy

    def fork(self, request):
        """A request that goes on from the same tokens."""
        self.num_users.update(request.pages)
        return Request(list(request.pages), request.length)

    def release(self, request):
        """A request has ended. What its pages hold can be shared until they are taken anew."""
        self.num_users.subtract(request.pages)

    def segments_of(self, request):
        return np.concatenate([self.segments[page] for page in request.pages])[: request.length]

    def of_layer(self, of_pages, request, i):
        """Keys or values (N, K, D) of layer i."""
        return np.concatenate([of_pages[page][i] for page in request.pages])[: request.length]


def contents(tokens):
    """What the whole pages of a prompt hold, each with all pages before it."""
    content = ()
    for begin in range(0, len(tokens.ids) - PAGE + 1, PAGE):
        page = tokens.cut(begin, begin + PAGE)
        content = (content, tuple(page.ids), tuple(page.segments))
        yield content


# The model


class Engine:
    """A Llama with HatLLM's masks over a pool of pages."""

    def __init__(self, case):
        self.config, self.scheme, self.weights = case.config, case.scheme, case.weights
        self.pool = Pool(case.config)
        self.logits_of_page = {}  # (PAGE, V); an engine that gives no logits of prompts has none

    def begin(self, prompt):
        """A Request that holds those pages of a prompt that were computed already.

        The last token is always computed, since its logits are wanted.
        """
        request = Request()
        for content in contents(prompt.cut(0, len(prompt.ids) - 1)):
            if content not in self.pool.page_with:
                break
            request.pages.append(self.pool.page_with[content])
            request.length += PAGE
        self.pool.num_users.update(request.pages)
        return request

    def read_prompts(self, prompts):
        """Read prompts side by side, a chunk of each at once: their requests and logits (N, V)."""
        requests = [self.begin(prompt) for prompt in prompts]
        logits = [[self.logits_of_page[page] for page in r.pages] for r in requests]
        while True:
            batch, numbers = [], []
            for number, (request, prompt) in enumerate(zip(requests, prompts)):
                chunk = prompt.cut(request.length, request.length + CHUNK)
                if chunk.ids:
                    batch.append((request, chunk))
                    numbers.append(number)
            if not batch:
                break
            for number, new in zip(numbers, self.step(batch)):
                logits[number].append(new)
        logits = [np.concatenate(parts) for parts in logits]
        for request, prompt, of_prompt in zip(requests, prompts, logits):
            for number, content in enumerate(contents(prompt)):
                page = request.pages[number]
                self.pool.page_with.setdefault(content, page)
                self.logits_of_page[page] = of_prompt[number * PAGE : (number + 1) * PAGE]
        return requests, logits

    def step(self, batch):
        """Compute new tokens, [(request, Tokens), ...]: of each request their logits (n, V)."""
        places = [self.pool.append(request, tokens.segments) for request, tokens in batch]
        ends = np.cumsum([len(tokens.ids) for _, tokens in batch])
        spans = [slice(end - len(tokens.ids), end) for end, (_, tokens) in zip(ends, batch)]
        ids = [i for _, tokens in batch for i in tokens.ids]
        positions = np.array([p for _, tokens in batch for p in tokens.positions])
        x = self.weights["model.embed_tokens.weight"][ids]  # (T, C)
        for i in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{i}"
            normed = self.rms_norm(x, f"{name}.input_layernorm")
            q = rotated(self.heads(normed, f"{name}.self_attn.q_proj"), positions, self.config)
            k = rotated(self.heads(normed, f"{name}.self_attn.k_proj"), positions, self.config)
            v = self.heads(normed, f"{name}.self_attn.v_proj")
            for span, of_request in zip(spans, places):
                for (page, place), key, value in zip(of_request, k[span], v[span]):
                    self.pool.keys[page][i, place] = key
                    self.pool.values[page][i, place] = value
            mixed = np.concatenate(
                [self.attention(i, request, q[span]) for (request, _), span in zip(batch, spans)]
            )
            x = x + self.linear(mixed.reshape(len(x), -1), f"{name}.self_attn.o_proj")
            normed = self.rms_norm(x, f"{name}.post_attention_layernorm")
            gate = self.linear(normed, f"{name}.mlp.gate_proj")
            up = self.linear(normed, f"{name}.mlp.up_proj")
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, f"{name}.mlp.down_proj")
        is_tied = self.config["tie_word_embeddings"]
        head = "model.embed_tokens" if is_tied else "lm_head"
        logits = self.rms_norm(x, "model.norm") @ self.weights[f"{head}.weight"].T
        return [logits[span] for span in spans]

    def attention(self, i, request, q):
        """Layer i, the new tokens of a request: q (n, H, D) -> (n, H, D)."""
        kind = kind_of_layer(i, self.config["num_hidden_layers"], self.scheme)
        mask = allowed(kind, self.scheme, self.pool.segments_of(request), len(q))
        keys = self.pool.of_layer(self.pool.keys, request, i)
        values = self.pool.of_layer(self.pool.values, request, i)
        return attend(q, keys, values, mask)

    def heads(self, x, name):
        """(T, C) -> (T, H or K, D)"""
        return self.linear(x, name).reshape(len(x), -1, self.config["head_dim"])

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def rms_norm(self, x, name):
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return self.weights[f"{name}.weight"] * x / np.sqrt(mean + self.config["rms_norm_eps"])


def rotated(x, positions, config):
    """x (T, heads, D), turned by the positions (T,)."""
    angles = positions[:, None] * frequencies(config)  # (T, D / 2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def frequencies(config):
    """(D / 2,)"""
    D, scaling = config["head_dim"], config["rope_scaling"]
    f = config["rope_theta"] ** (-np.arange(0, D, 2) / D)
    if scaling is None:
        return f
    if scaling["rope_type"] == "linear":
        return f / scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * f / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return share * f + (1 - share) * f / scaling["factor"]


# Golden cases


def without_padding(ids, segments, positions):
    """Tokens of a row, and where they stand in it."""
    where = np.flatnonzero(segments != -1)
    return Tokens(*(values[where].tolist() for values in (ids, segments, positions))), where


def model_logits(case):
    """All rows side by side. The loss is left out: it needs nothing of an engine."""
    rows = zip(case.input_ids, case.segment_ids, case.position_ids)
    prompts, where = zip(*(without_padding(*row) for row in rows))
    _, of_prompts = Engine(case).read_prompts(prompts)
    logits = np.zeros((*case.input_ids.shape, case.config["vocab_size"]))
    for b, of_prompt in enumerate(of_prompts):
        logits[b, where[b]] = of_prompt
    return {"logits": logits}


def decoding_logits(case):
    """Prompts one after the other, so that later ones find pages of earlier ones; then steps."""
    engine = Engine(case)
    rows = zip(case.prompt_ids, case.prompt_segment_ids, case.prompt_position_ids)
    requests = []
    prompt_logits = np.zeros((*case.prompt_ids.shape, case.config["vocab_size"]))
    for n, row in enumerate(rows):
        prompt, where = without_padding(*row)
        (request,), (of_prompt,) = engine.read_prompts([prompt])
        requests.append(request)
        prompt_logits[n, where] = of_prompt
    step_logits = np.zeros((*case.step_ids.shape, case.config["vocab_size"]))
    for t, parents in enumerate(case.parents):
        slots = np.flatnonzero(parents != -1)
        forked = {w: engine.pool.fork(requests[parents[w]]) for w in slots}
        for request in filter(None, requests):
            engine.pool.release(request)
        requests = [forked.get(w) for w in range(len(parents))]
        inputs = (case.step_ids[t], case.step_segment_ids[t], case.step_position_ids[t])
        batch = [(requests[w], Tokens(*([int(values[w])] for values in inputs))) for w in slots]
        for w, logits in zip(slots, engine.step(batch)):
            step_logits[t, w] = logits[0]
    return {"prompt_logits": prompt_logits, "step_logits": step_logits}
