// The stage `decoding`: prompts, then one token a slot and step, each slot with a cache of its own.

import { copyOf, Llama } from "./llama.mjs";

export function runDecoding(goldenCase) {
  const { inputs } = goldenCase;
  const llama = new Llama(goldenCase);
  let caches = inputs.prompt_ids.map(() => llama.emptyCache());
  const promptLogits = inputs.prompt_ids.map((row, n) => {
    const segments = inputs.prompt_segment_ids[n];
    const positions = inputs.prompt_position_ids[n];
    return Array.from(row, (id, t) => llama.read(caches[n], id, segments[t], positions[t]));
  });
  const nothing = new Float64Array(goldenCase.info.config.vocab_size);
  const stepLogits = inputs.step_ids.map((row, t) => {
    // all copies are made before a token is read: a parent may have several children
    const parents = Array.from(inputs.parents[t]);
    caches = parents.map((parent) => (parent === -1 ? null : copyOf(caches[parent])));
    const segments = inputs.step_segment_ids[t];
    const positions = inputs.step_position_ids[t];
    return Array.from(row, (id, w) =>
      caches[w] === null ? nothing : llama.read(caches[w], id, segments[w], positions[w]),
    );
  });
  return { prompt_logits: promptLogits, step_logits: stepLogits };
}
