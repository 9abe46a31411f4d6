"""The front door: from a model folder and a history of titles to recommendations."""

import math
from pathlib import Path

import numpy as np
import torch

from ref.checkpoints import load_model
from ref.checkpoints.adapters import base_of
from ref.checkpoints.tokenizers import check_vocabulary, read_tokenizer
from ref.prompt import PromptEncoder
from ref.search.beam import beam_search
from ref.search.decoder import Decoder
from ref.search.exact import title_log_probs
from ref.settings import SETTINGS_FILE, read_catalogue, read_settings
from ref.text import clean_title
from ref.trie import build_trie

LEAST_BEAMS = 10  # a search for fewer titles is as wide as that: wider ones find better titles


def load_model_and_encoder(
    folder, dtype=torch.float32, device="cpu", scheme=None, base=None, settings=None
):
    """(model in eval mode, PromptEncoder, Settings) of a folder.

    scheme, base: as in load_model. settings: replaces those of the folder.
    """
    settings = settings or read_settings(folder)
    tokenizer = read_tokenizer(folder, base)
    model = load_model(folder, dtype, device, scheme, base).eval()
    check_vocabulary(tokenizer, model.config)
    encoder = PromptEncoder(
        tokenizer, settings.layout, model.scheme, model.config.max_position_embeddings
    )
    return model, encoder, settings


class Recommender:
    """A model that recommends titles of its catalogue; `Recommender.load(folder)` makes one.

    titles: the catalogue. encoder: makes prompts. decoder: the model, over the trie of the titles.
    settings: as it was trained. number: {title: its number in the catalogue}; titles with the same
    tokens cannot be told apart and have the number of the first of them.
    """

    def __init__(self, model, encoder, settings, titles):
        trie = build_trie(encoder, titles)
        self.titles = titles
        self.encoder = encoder
        self.decoder = Decoder(model, trie, settings)
        self.settings = settings
        self.number = dict(zip(titles, trie.canonical.tolist()))

    @classmethod
    def load(cls, folder, device="cpu", dtype=torch.float32, base=None):
        """The Recommender of a model folder. base: as in load_model.

        Raises FileNotFoundError or ValueError, naming the file, for a folder that holds no model,
        or does not say what it recommends and how it is asked.
        """
        base_of(folder, base)  # refuses what is no folder
        titles = read_catalogue(folder)
        path = Path(folder) / SETTINGS_FILE
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such file, so which prompts the model reads is not known; train.py "
                "writes it"
            )
        return cls(*load_model_and_encoder(folder, dtype=dtype, device=device, base=base), titles)

    def recommend(self, history, k=10, exclude_seen=True, candidates=None):
        """The k best titles after a history: [(title, log-probability in nats), ...], best first.

        history: titles, oldest first; the model reads the last `settings.history` of them. One that
        is not in `titles` to the letter is read as text, like the others, and cannot be excluded
        (ref/matching.py finds the title behind other spellings). exclude_seen: recommend none of
        the history. candidates: titles of the catalogue to choose from; None is all of them.
        Fewer than k come back only where fewer may be recommended. Without candidates they are
        found by beam search, which may miss one; with candidates all of these are scored.
        Raises ValueError for an empty history, a text in place of a list, k below 1, candidates
        that are no titles of the catalogue, and a model that gives no finite probabilities.
        """
        return self.recommend_all([history], k, exclude_seen, candidates)[0]

    def recommend_all(self, histories, k=10, exclude_seen=True, candidates=None):
        """`recommend` for several histories at once: a list of its results."""
        if not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k is {k!r}; expected an integer of 1 or more")
        histories = [self.cleaned(history, "the history") for history in histories]
        if not all(histories):
            raise ValueError("a history is empty; expected at least one title")
        if candidates is not None:
            candidates = self.cleaned(candidates, "candidates")
        if not histories:
            return []
        prompts = [self._prompt(history) for history in histories]
        seen = [self._numbers(history) if exclude_seen else set() for history in histories]
        if candidates is None:
            best = beam_search(self.decoder, prompts, max(k, LEAST_BEAMS), seen)
        else:
            best = self._best_candidates(prompts, candidates, seen)
        self._refuse_not_finite(best, seen, candidates)
        return [[(self.titles[title], score) for title, score in row[:k]] for row in best]

    def num_read(self, history):
        """How many of the last titles of a history the model reads; it knows nothing of others."""
        history = self.cleaned(history, "the history")
        return min(len(history), self.settings.history) - self.num_dropped(history)

    def num_dropped(self, history):
        """How many of the last `settings.history` titles do not fit into the prompt."""
        return self._prompt(self.cleaned(history, "the history")).dropped

    def cleaned(self, titles, source):
        """Cleaned titles as a list; those of the catalogue stay: "&amp;" may be part of one.

        Raises ValueError, beginning with `source`, for anything else.
        """
        if isinstance(titles, str):
            raise ValueError(f"{source}: found the text {titles!r}; expected a list of titles")
        cleaned = []
        for title in titles:
            is_known = isinstance(title, str) and title in self.number
            cleaned.append(title if is_known else clean_title(title, source))
        return cleaned

    def _prompt(self, history):
        """The Prompt of the last titles, with room after it for any title."""
        shown = history[-self.settings.history :]
        return self.encoder.encode(shown, reserve=self.decoder.trie.longest)

    def _refuse_not_finite(self, best, seen, candidates):
        """Raise ValueError for a model that gives titles no probability."""
        possible = self._numbers(self.titles if candidates is None else candidates)
        for row, excluded in zip(best, seen):
            is_finite = all(math.isfinite(log_prob) for _, log_prob in row)
            may_be_recommended = possible - excluded
            nothing_came = may_be_recommended and not row
            if not is_finite or nothing_came:
                raise ValueError(
                    "the model gives the titles no finite probability: its weights, its adapter "
                    "or its temperature is too extreme"
                )

    def _numbers(self, titles):
        """The numbers of those titles that the catalogue holds: a set."""
        return {self.number[title] for title in titles if title in self.number}

    def _best_candidates(self, prompts, candidates, seen):
        """For each prompt [(number of a title, log-probability), ...], best first."""
        unknown = [title for title in candidates if title not in self.number]
        if unknown:
            raise ValueError(f"candidate {unknown[0]!r} is no title of the catalogue")
        numbers = np.array(sorted(self._numbers(candidates)), np.int64)
        log_probs = title_log_probs(self.decoder, prompts, numbers)
        best = []
        for row, excluded in zip(log_probs, seen):
            order = numbers[np.argsort(-row[numbers], kind="stable")]
            best.append([(title, float(row[title])) for title in order if title not in excluded])
        return best
