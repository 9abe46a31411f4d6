"""The definition of the loss: which tokens are predicted, over which alternatives, and the mean.

The logits at t - 1 predict the token at t. `loss` says which tokens are predicted:

    "target"  those of the target, the item with the highest number of its row
    "titles"  those of every item but the first of its row
    "all"     every real token that has a real token before it

`softmax` says what they are chosen from: "full", the whole vocabulary; "catalogue", the next tokens
of all titles of the catalogue that begin as the title does so far. What has one alternative has
probability 1 and costs nothing. The loss is the mean over predicted titles; over tokens with "all".
Probabilities are of logits / temperature; logarithms are natural.

Source: MSL (Wang et al., SIGIR 2025) for the softmax over the catalogue.
Shapes: B rows, T tokens, V vocabulary, S titles, M tokens of the longest title.
"""

import numpy as np


def trace(logits, input_ids, item_numbers, titles, options):
    """Everything that is computed, by name, in the order of computation.

    logits (B, T, V); input_ids, item_numbers int (B, T): -1 padding, 0 text, 1..n the history,
    n + 1 the target. titles int (S, M): the catalogue, each title with its end token, then -1.
    options: loss, softmax and temperature as attributes.
    """
    B, T, V = logits.shape
    catalogue = [title_tokens(title) for title in titles]
    in_scope = np.zeros((B, T), bool)
    num_alternatives = np.zeros((B, T), np.int64)
    log_probs = np.zeros((B, T))
    gradients = np.zeros((B, T, V))
    for b, t in np.ndindex(B, T):
        if not is_in_scope(t, item_numbers[b], options.loss):
            continue
        in_scope[b, t] = True
        token = int(input_ids[b, t])
        so_far = title_so_far(input_ids[b], item_numbers[b], t)
        tokens = alternatives(so_far, token, catalogue, V, options.softmax)
        num_alternatives[b, t] = len(tokens)
        row = logits[b, position_before(t)].astype(float)
        log_probs[b, t] = log_prob(row, token, tokens, options.temperature)
        gradients[b, t - 1] = token_gradient(row, token, tokens, options.temperature)
    num_predicted = denominator(item_numbers, in_scope, options.loss)
    return {
        "num_alternatives": num_alternatives,
        "predicted": num_alternatives > 1,
        "token_log_probs": log_probs,
        "num_predicted": np.asarray(num_predicted),
        "loss": np.asarray(mean_loss(log_probs, num_predicted)),
        "gradients.logits": gradients / num_predicted,
    }


def title_tokens(title):
    """The tokens of a row of `titles`, without its padding: a list."""
    return [int(token) for token in title if token != -1]


def is_in_scope(t, numbers, loss):
    """Is the token at t one of those that `loss` names? numbers: item numbers of the row, (T,)."""
    if numbers[t] == -1 or t == 0 or numbers[t - 1] == -1:
        return False
    if loss == "target":
        return numbers[t] == numbers.max()
    if loss == "titles":
        return numbers[t] >= 2
    return True


def position_before(t):
    """The position whose logits predict the token at t."""
    return t - 1


def title_so_far(input_ids, numbers, t):
    """The tokens before t that belong to the item of token t: a list."""
    return [int(input_ids[k]) for k in range(t) if numbers[k] == numbers[t]]


def alternatives(so_far, token, catalogue, V, softmax):
    """The tokens, each once, from which `token` is chosen: a list."""
    if softmax == "full":
        return list(range(V))
    return continuations(catalogue, so_far)


def continuations(titles, prefix):
    """The tokens that come next in the titles that begin with a prefix, sorted."""
    length = len(prefix)
    tokens = set()
    for title in titles:
        if len(title) > length and title[:length] == prefix:
            tokens.add(title[length])
    return sorted(tokens)


def log_prob(logits, token, tokens, temperature):
    """Natural logarithm of the probability of `token` among `tokens`. logits: (V,)."""
    return logits[token] / temperature - log_sum_exp(logits[tokens] / temperature)


def log_sum_exp(x):
    """log(sum(exp(x))) without overflow."""
    return x.max() + np.log(np.exp(x - x.max()).sum())


def token_gradient(logits, token, tokens, temperature):
    """The gradient of -log_prob with respect to the logits, (V,): (softmax - one-hot) / T."""
    gradient = np.zeros_like(logits)
    scaled = logits[tokens] / temperature
    gradient[tokens] = np.exp(scaled - log_sum_exp(scaled))
    gradient[token] -= 1
    return gradient / temperature


def denominator(item_numbers, in_scope, loss):
    """What the loss is a mean over: predicted titles, or tokens with "all".

    A title counts as often as it stands there, and also where none of its tokens has a choice.
    """
    if loss == "all":
        return in_scope.sum()
    predicted_titles = set()
    for b, t in np.argwhere(in_scope):
        predicted_titles.add((b, item_numbers[b, t]))
    return len(predicted_titles)


def mean_loss(log_probs, num_predicted):
    """The loss. log_probs (B, T) is 0 where nothing is predicted."""
    return -log_probs.sum() / num_predicted
