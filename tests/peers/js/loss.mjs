// The stage `loss`: which tokens are predicted, over which alternatives, and the mean.

import { range } from "./tensors.mjs";

export function runLoss({ info, inputs }) {
  const catalogue = inputs.titles.map((title) => Array.from(title).filter((token) => token !== -1));
  const outputs = {
    num_alternatives: zerosLike(inputs.input_ids),
    predicted: zerosLike(inputs.input_ids),
    token_log_probs: zerosLike(inputs.input_ids),
    "gradients.logits": inputs.logits.map(zerosLike),
  };
  const predictedTitles = new Set();
  let numTokens = 0;
  inputs.input_ids.forEach((ids, b) => {
    const numbers = inputs.item_numbers[b];
    ids.forEach((token, t) => {
      if (!isInScope(t, numbers, info.loss)) return;
      numTokens += 1;
      predictedTitles.add(`row ${b}, item ${numbers[t]}`);
      const soFar = range(t).filter((k) => numbers[k] === numbers[t]).map((k) => ids[k]);
      const alternatives = info.softmax === "catalogue" ? continuations(catalogue, soFar) : null;
      const choice = chosen(token, inputs.logits[b][t - 1], alternatives, info.temperature);
      outputs.num_alternatives[b][t] = choice.num;
      outputs.predicted[b][t] = choice.num > 1 ? 1 : 0;
      outputs.token_log_probs[b][t] = choice.logProb;
      outputs["gradients.logits"][b][t - 1] = choice.gradient;
    });
  });
  const count = info.loss === "all" ? numTokens : predictedTitles.size;
  const gradients = outputs["gradients.logits"].map((rows) =>
    rows.map((row) => row.map((slope) => slope / count)),
  );
  const total = outputs.token_log_probs.reduce((sum, row) => row.reduce((a, b) => a + b, sum), 0);
  const loss = -total / count;
  return { ...outputs, "gradients.logits": gradients, num_predicted: count, loss };
}

// A token chosen among alternatives (null: the whole vocabulary): their number, the token's
// log-probability, and the gradient of the negative of it with respect to the logits (V).
function chosen(token, logits, alternatives, temperature) {
  const scaled = logits.map((logit) => logit / temperature);
  const among = alternatives ?? range(logits.length);
  const logTotal = logSumExp(among.map((other) => scaled[other]));
  const gradient = new Float64Array(logits.length);
  for (const other of among) {
    const probability = Math.exp(scaled[other] - logTotal);
    gradient[other] = (probability - (other === token ? 1 : 0)) / temperature;
  }
  return { num: among.length, logProb: scaled[token] - logTotal, gradient };
}

// Is the token at t predicted? numbers: -1 padding, 0 text, 1..n the history, n + 1 the target.
function isInScope(t, numbers, loss) {
  if (t === 0 || numbers[t] === -1 || numbers[t - 1] === -1) return false;
  if (loss === "target") return numbers[t] === Math.max(...numbers);
  return loss === "all" || numbers[t] >= 2;
}

// The tokens that come next in the titles that begin with `soFar`, each once.
function continuations(catalogue, soFar) {
  const next = new Set();
  for (const title of catalogue) {
    if (title.length > soFar.length && soFar.every((token, depth) => title[depth] === token)) {
      next.add(title[soFar.length]);
    }
  }
  return [...next];
}

// log(sum(exp(x))), without overflow where x is large.
export function logSumExp(x) {
  const top = Math.max(...x);
  return top + Math.log(x.reduce((total, value) => total + Math.exp(value - top), 0));
}

function zerosLike(rows) {
  return rows.map((row) => new Float64Array(row.length));
}
