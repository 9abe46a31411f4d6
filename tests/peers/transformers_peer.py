"""transformers' LlamaForCausalLM with a mask for each layer, and its `generate` over a catalogue.

    python -m ref.golden run tests/peers/transformers_peer.py

The masks and the tree of the catalogue are made here, nothing is imported from ref.
PEER_ATTENTION: eager (the default) or sdpa, the two implementations that take any mask.

transformers gives all layers one mask. Each attention gets its own by a hook; the rows of the
tokens at hand are computed from the segment ids of all tokens so far. In a beam search these are
the prompt's, the same for all beams of a prompt, and those of the generated tokens, which
`generate` hands over after it has put the beams, and the cache, into their new order.

`generate` finds what ref/search/beam.py finds if it is told to: `length_penalty=0.0` (a score is a
sum of log-probabilities), `early_stopping="never"` (the search goes on as long as a beam may pass
the worst title found), `num_beams` as wide as the list. By itself a finished beam takes no place of
a live one, as there. It differs in this:

* Equal scores are ordered by torch.topk, not by the catalogue, and the search ends where the best
  live beam only equals the worst title found.
* One beam is a greedy search to it, which ends with its first title and returns no score.
* Scores are float32, whatever the type of the model.
* A list that is too short is filled with beams of score -1e9, whose tokens mean nothing.
* Prompts must be padded at the left: the next token comes from the logits of the last column.
* A sequence ends at `eos_token_id`, wherever that stands. The quote that ends a title may begin it,
  too: `TitleEnds` looks at the whole title. Set no eos_token_id that titles hold inside.
* log_softmax comes before the processors of logits: `TitleProcessor` normalizes anew.

Shapes: B rows, T tokens, Q queries, the last of T, V vocabulary; N prompts, P tokens of a prompt,
W slots or beams, S titles.
"""

import os

import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    StoppingCriteria,
)

UNREACHABLE = -1e8  # below it are the scores with which `generate` fills a list


def run(case):
    """What the port computes for a golden case, by the names of the case's outputs."""
    if case.stage == "model":
        return run_model(case)
    if case.stage == "decoding":
        return run_decoding(case)
    if case.stage == "search" and case.config is not None:
        return run_search(case)
    raise NotImplementedError("not a stage of a model" if case.config is None else case.stage)


# The masks


def masks_of(segment_ids, num_queries, scheme):
    """Of each kind of layer, who may attend to whom: {"IN": bool (B, Q, T), "OR": ..., "CR": ...}.

    segment_ids: int (B, T), -1 padding, 0 text, 1..n the history, n + 1 the target.
    """
    index = torch.arange(segment_ids.shape[1])
    j, k = index[-num_queries:, None], index
    s_j, s_k = segment_ids[:, -num_queries:, None], segment_ids[:, None, :]
    original = (k <= j) & (s_k != -1) & (s_j != -1)
    in_item, same = s_j >= 1, s_j == s_k
    if scheme.text == "isolated":
        intra = original & (~in_item | same)
    else:
        intra = original & ~(in_item & (s_k >= 1) & ~same)
    cross = original & ~(in_item & same)
    if scheme.cross_self:
        cross |= original & (j == k)
    masks = {"IN": intra, "OR": original, "CR": cross}
    for kind, mask in masks.items():
        is_empty = ~mask.any(-1, keepdim=True)  # padding, and what is left without a key
        masks[kind] = mask | (is_empty & (j == k))
    return masks


def kind_of_layer(i, L, scheme):
    """Which of the masks layer i of L has; layer 0 is nearest the embedding."""
    if i < scheme.intra_layers:
        return "IN"
    if i >= L - scheme.cross_layers:
        return "CR"
    return "OR"


def additive(allowed, dtype=torch.float32):
    """Bool (B, Q, T) -> 0 and -inf, (B, 1, Q, T)."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)[:, None]


def give_masks(model):
    """A dict, empty yet: what it holds under i replaces the mask that layer i gets."""
    masks = {}

    def give_mask(attention, args, kwargs):
        return args, kwargs | {"attention_mask": masks[attention.layer_idx]}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(give_mask, with_kwargs=True)
    return masks


# The model


class HatLlama(LlamaForCausalLM):
    """LlamaForCausalLM with HatLLM's masks.

    `forward` and `generate` take segment_ids (B, T): in `forward` those of all tokens so far, those
    in the cache too; in `generate` those of the prompts. Set `scheme` first, and for `generate`
    `catalogue`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.masks = give_masks(self)
        self.scheme = None
        self.catalogue = None

    def forward(self, input_ids=None, attention_mask=None, segment_ids=None, **kwargs):
        L = self.config.num_hidden_layers
        masks = masks_of(segment_ids, input_ids.shape[1], self.scheme)
        for i in range(L):
            self.masks[i] = additive(masks[kind_of_layer(i, L, self.scheme)], self.dtype)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, segment_ids=None, **kwargs):
        """The arguments of `forward` at a step; input_ids (B, T) are prompts and generated tokens.

        segment_ids: those of the prompts, (B, P); `generate` has repeated them for the beams.
        """
        arguments = super().prepare_inputs_for_generation(input_ids, **kwargs)
        generated = input_ids[:, segment_ids.shape[1] :]
        target = segment_ids.amax(1, keepdim=True).clamp(min=0) + 1  # the history's are 1..n
        new = torch.where(self.catalogue.in_item(generated), target, 0)
        arguments["segment_ids"] = torch.cat([segment_ids, new], dim=1)
        return arguments


def load(case):
    """The case's model. Of a folder it is HatLlama.from_pretrained(folder)."""
    attention = os.environ.get("PEER_ATTENTION", "eager")
    config = LlamaConfig(**case.config | {"num_attention_heads": 1}, attn_implementation=attention)
    # set later: LlamaConfig refuses a number of heads that does not divide hidden_size, which is
    # no error where head_dim is given
    config.num_attention_heads = case.config["num_attention_heads"]
    config.bos_token_id = config.eos_token_id = None  # else those of Llama 2
    model = HatLlama(config).eval()
    weights = {}
    for name, weight in case.weights.items():
        weights[name] = torch.tensor(weight, dtype=torch.float32)
    model.load_state_dict(weights, strict=not config.tie_word_embeddings)
    model.scheme = case.scheme
    return model


@torch.no_grad()
def run_model(case):
    """Logits (B, T, V) of one pass."""
    output = load(case)(
        torch.tensor(case.input_ids),
        segment_ids=torch.tensor(case.segment_ids),
        position_ids=torch.tensor(case.position_ids),
    )
    return {"logits": output.logits}


@torch.no_grad()
def run_decoding(case):
    """Logits of the prompts (N, P, V), then of one token a slot and step, (S, W, V)."""
    model, inputs = load(case), {name: torch.tensor(array) for name, array in case.inputs.items()}
    cache = DynamicCache(config=model.config)
    segment_ids = inputs["prompt_segment_ids"]
    arguments = {"past_key_values": cache, "use_cache": True}
    prompt_logits = model(
        inputs["prompt_ids"],
        segment_ids=segment_ids,
        position_ids=inputs["prompt_position_ids"],
        **arguments,
    ).logits
    step_logits = []
    for t, parents in enumerate(inputs["parents"]):
        rows = parents.clamp(min=0)  # in a slot that nobody is in, any row may stand
        cache.reorder_cache(rows)
        new = inputs["step_segment_ids"][t][:, None]
        segment_ids = torch.cat([segment_ids[rows], new], dim=1)
        output = model(
            inputs["step_ids"][t][:, None],
            segment_ids=segment_ids,
            position_ids=inputs["step_position_ids"][t][:, None],
            **arguments,
        )
        step_logits.append(output.logits[:, -1])
    return {"prompt_logits": prompt_logits, "step_logits": torch.stack(step_logits)}


# The search


class Catalogue:
    """The titles, tuples of tokens, and what may come after the beginning of one.

    in_item: for each title bool of each token, whether it belongs to the item; others are text.
    """

    def __init__(self, titles, in_item):
        self.titles = titles
        self.next_tokens = continuations(titles)
        self.is_item = {}
        for title, flags in zip(titles, in_item):
            for length in range(1, len(title) + 1):
                self.is_item[title[:length]] = bool(flags[length - 1])

    def in_item(self, generated):
        """For generated tokens (B, G), whether each belongs to the target item: bool (B, G)."""
        rows = []
        for tokens in generated.tolist():
            prefixes = [tuple(tokens[:length]) for length in range(1, len(tokens) + 1)]
            # a beam that fills up stands at no beginning of a title
            rows.append([self.is_item.get(prefix, False) for prefix in prefixes])
        return torch.tensor(rows, dtype=torch.bool).reshape(generated.shape)


def continuations(titles):
    """{beginning of a title: the tokens that may come next}; beginnings are tuples, () the root."""
    tokens = {}
    for title in titles:
        for length, token in enumerate(title):
            tokens.setdefault(title[:length], set()).add(token)
    return {prefix: sorted(choice) for prefix, choice in tokens.items()}


class TitleProcessor(LogitsProcessor):
    """Gives log-probabilities of what continues a title, and -inf to all other tokens.

    open_titles: for each prompt the titles that it may be given. softmax: "full" or "catalogue",
    which normalizes over all that continues a title, be it open or not.
    """

    def __init__(self, catalogue, open_titles, prompt_length, options):
        self.catalogue = catalogue
        self.open_tokens = [continuations(titles) for titles in open_titles]
        self.prompt_length = prompt_length
        self.options = options

    def __call__(self, input_ids, scores):
        """input_ids (B, T) with B = N * W, scores (B, V) -> (B, V)."""
        W = len(input_ids) // len(self.open_tokens)
        processed = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(input_ids[:, self.prompt_length :].tolist()):
            allowed = self.open_tokens[row // W].get(tuple(tokens), [])
            log_probs = next_log_probs(scores[row], tuple(tokens), self.catalogue, self.options)
            processed[row, allowed] = log_probs[allowed]
        return processed


class TitleEnds(StoppingCriteria):
    """Says of each beam whether what is generated is a whole title."""

    def __init__(self, titles, prompt_length):
        self.titles = set(titles)
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        """input_ids (B, T) -> bool (B,)."""
        generated = input_ids[:, self.prompt_length :].tolist()
        return torch.tensor([tuple(tokens) in self.titles for tokens in generated])


def next_log_probs(logits, prefix, catalogue, options):
    """Log-probabilities (V,) after the beginning of a title, -inf where they are not defined.

    logits: (V,), or their log_softmax, which is the same but for a constant.
    """
    logits = logits / options["temperature"]
    if options["softmax"] == "catalogue":
        among = catalogue.next_tokens.get(prefix, [])
        chosen = torch.full_like(logits, -torch.inf)
        chosen[among] = logits[among].log_softmax(-1)
        return chosen
    return logits.log_softmax(-1)


@torch.no_grad()
def run_search(case):
    """title_log_probs (N, S), beam_titles (N, W) and beam_scores (N, W)."""
    titles = [tuple(row[row != -1].tolist()) for row in case.titles]
    model = load(case)
    model.catalogue = Catalogue(titles, case.title_in_item)
    prompts = left_padded(torch.tensor(case.prompt_ids), torch.tensor(case.prompt_segment_ids))
    log_probs = [
        title_log_probs(model, (input_ids[None], segment_ids[None]), case.info)
        for input_ids, segment_ids in zip(*prompts)
    ]
    numbers, scores = [], []
    width = case.info["width"]
    for found in beam_search(model, prompts, open_titles(titles, case.excluded), case.info):
        empty = width - len(found)
        numbers.append([titles.index(title) for title, _ in found] + [-1] * empty)
        scores.append([score for _, score in found] + [-torch.inf] * empty)
    return {
        "title_log_probs": torch.stack(log_probs),
        "beam_titles": torch.tensor(numbers),
        "beam_scores": torch.tensor(scores),
    }


def left_padded(input_ids, segment_ids):
    """Prompts (N, P) with all their padding at the left: it is not seen, and moves nobody."""
    order = (segment_ids != -1).int().argsort(dim=1, stable=True)
    return input_ids.gather(1, order), segment_ids.gather(1, order)


def open_titles(titles, excluded):
    """For each prompt the titles that it may be given. excluded: bool (N, S).

    A title that the catalogue holds twice is excluded with either number.
    """
    chosen = []
    for row in excluded:
        closed = {title for title, is_excluded in zip(titles, row) if is_excluded}
        chosen.append([title for title in titles if title not in closed])
    return chosen


def beam_search(model, prompts, titles, options):
    """For each prompt [(title, score), ...], best first. prompts: ids and segment ids, (N, P) each.

    titles: for each prompt those that it may be given. options: width, softmax, temperature.
    """
    input_ids, segment_ids = prompts
    P, longest = input_ids.shape[1], max(map(len, model.catalogue.titles))
    processor = TitleProcessor(model.catalogue, titles, P, options)
    output = model.generate(
        input_ids,
        segment_ids=segment_ids,
        attention_mask=(segment_ids != -1).long(),  # for the positions; the masks are ours
        logits_processor=[processor],
        num_beams=options["width"],
        num_return_sequences=options["width"],
        length_penalty=0.0,
        early_stopping="never",
        max_new_tokens=longest,
        stopping_criteria=[TitleEnds(model.catalogue.titles, P)],
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    found = [[] for _ in input_ids]
    for row, (tokens, score) in enumerate(zip(output.sequences, output.sequences_scores)):
        if score > UNREACHABLE:
            title = whole_title(tokens[P:].tolist(), model.catalogue.titles)
            found[row // options["width"]].append((title, score.item()))
    return found


def whole_title(tokens, titles):
    """The title with which tokens begin; padding follows it."""
    for length in range(1, len(tokens) + 1):
        if tuple(tokens[:length]) in titles:
            return tuple(tokens[:length])
    raise ValueError(f"generated tokens {tokens} begin with no title of the catalogue")


def title_log_probs(model, prompt, options):
    """The log-probability of each title after one prompt, (S,): all titles in one batch."""
    input_ids, segment_ids = prompt
    titles, P = model.catalogue.titles, input_ids.shape[1]
    shown = [torch.tensor(title[:-1], dtype=torch.long) for title in titles]
    generated = torch.nn.utils.rnn.pad_sequence(shown, batch_first=True)  # padded at the right
    sequences = torch.cat([input_ids.expand(len(titles), P), generated], dim=1)
    arguments = model.prepare_inputs_for_generation(
        sequences, segment_ids=segment_ids.expand(len(titles), P)
    )
    positions = (arguments["segment_ids"] != -1).cumsum(1).sub(1).clamp(min=0)
    logits = model(sequences, segment_ids=arguments["segment_ids"], position_ids=positions).logits
    totals = []
    for title, row in zip(titles, logits[:, P - 1 :]):
        total = torch.zeros(())
        for length, token in enumerate(title):
            total += next_log_probs(row[length], title[:length], model.catalogue, options)[token]
        totals.append(total)
    return torch.stack(totals)
