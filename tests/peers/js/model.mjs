// The stage `model`: logits (B, T, V) and the loss.

import { Llama } from "./llama.mjs";
import { logSumExp } from "./loss.mjs";

export function runModel(goldenCase) {
  const { input_ids: ids, segment_ids: segments, position_ids: positions } = goldenCase.inputs;
  const llama = new Llama(goldenCase);
  const logits = ids.map((row, b) => {
    const cache = llama.emptyCache();
    return Array.from(row, (id, t) => llama.read(cache, id, segments[b][t], positions[b][t]));
  });
  return { logits, loss: meanCrossEntropy(logits, goldenCase.inputs.labels) };
}

// The mean over all labelled tokens of the batch. Position t - 1 predicts the label at t.
function meanCrossEntropy(logits, labels) {
  let total = 0;
  let count = 0;
  labels.forEach((row, b) => {
    row.forEach((label, t) => {
      if (t === 0 || label === -100) return;
      total += logSumExp(logits[b][t - 1]) - logits[b][t - 1][label];
      count += 1;
    });
  });
  return total / count;
}
