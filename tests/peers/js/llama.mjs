// A Llama that reads one token after the other. Vectors are Float64Array, a matrix is an array of
// its rows; (out, in) as in the checkpoints, so that a row gives one number of the output.

import { kindOfLayer, visibleKeys } from "./masks.mjs";
import { range } from "./tensors.mjs";

export class Llama {
  constructor({ info, weights }) {
    this.config = info.config;
    this.scheme = info.scheme;
    this.weights = weights;
    this.turns = frequencies(info.config);
  }

  // What is kept of a sequence: its segment ids, and of each layer a key and a value of each token.
  emptyCache() {
    const layers = range(this.config.num_hidden_layers);
    return { segmentIds: [], layers: layers.map(() => ({ keys: [], values: [] })) };
  }

  // The logits (V) after one more token, which the cache takes in.
  read(cache, token, segmentId, positionId) {
    cache.segmentIds.push(segmentId);
    const L = this.config.num_hidden_layers;
    let x = this.weights["model.embed_tokens.weight"][token];
    for (let i = 0; i < L; i++) {
      const name = `model.layers.${i}`;
      const visible = visibleKeys(kindOfLayer(i, L, this.scheme), cache.segmentIds, this.scheme);
      const normed = this.norm(x, `${name}.input_layernorm`);
      const mixed = this.attend(normed, `${name}.self_attn`, cache.layers[i], visible, positionId);
      x = sum(x, mixed);
      x = sum(x, this.mlp(this.norm(x, `${name}.post_attention_layernorm`), `${name}.mlp`));
    }
    const head = this.config.tie_word_embeddings ? "model.embed_tokens" : "lm_head";
    return this.linear(this.norm(x, "model.norm"), head);
  }

  attend(x, name, { keys, values }, visible, positionId) {
    const { num_attention_heads: H, num_key_value_heads: K, head_dim: D } = this.config;
    const queries = rotate(heads(this.linear(x, `${name}.q_proj`), D), positionId, this.turns);
    keys.push(rotate(heads(this.linear(x, `${name}.k_proj`), D), positionId, this.turns));
    values.push(heads(this.linear(x, `${name}.v_proj`), D));
    const mixed = new Float64Array(H * D);
    for (let h = 0; h < H; h++) {
      const kv = Math.floor(h / (H / K)); // neighbours share a key/value head
      const scores = visible.map((k) => dot(queries[h], keys[k][kv]) / Math.sqrt(D));
      const probabilities = softmax(scores);
      visible.forEach((k, place) => {
        for (let d = 0; d < D; d++) mixed[h * D + d] += probabilities[place] * values[k][kv][d];
      });
    }
    return this.linear(mixed, `${name}.o_proj`);
  }

  mlp(x, name) {
    const gate = this.linear(x, `${name}.gate_proj`).map((g) => g / (1 + Math.exp(-g)));
    const up = this.linear(x, `${name}.up_proj`);
    return this.linear(gate.map((g, i) => g * up[i]), `${name}.down_proj`);
  }

  norm(x, name) {
    const rms = Math.sqrt(dot(x, x) / x.length + this.config.rms_norm_eps);
    const weight = this.weights[`${name}.weight`];
    return x.map((value, i) => (weight[i] * value) / rms);
  }

  linear(x, name) {
    const y = Float64Array.from(this.weights[`${name}.weight`], (row) => dot(row, x));
    const bias = this.weights[`${name}.bias`];
    return bias ? sum(y, bias) : y;
  }
}

// A cache that can be continued without a trace in the other one. Its vectors are never changed, so
// the two may share them; the lists may not be shared: two children of one parent both push.
export function copyOf(cache) {
  const layers = cache.layers.map(({ keys, values }) => ({ keys: [...keys], values: [...values] }));
  return { segmentIds: [...cache.segmentIds], layers };
}

// By which angle each pair of a head's dimensions turns per position: (D/2).
function frequencies({ head_dim: D, rope_theta: theta, rope_scaling: rope }) {
  const plain = range(D / 2).map((d) => theta ** ((-2 * d) / D));
  if (rope?.rope_type === "linear") return plain.map((turn) => turn / rope.factor);
  if (rope?.rope_type === "llama3") return plain.map((turn) => slowed(turn, rope));
  return plain;
}

// Llama 3.1: slow pairs are slowed by the factor, fast ones kept, those between blended.
function slowed(turn, rope) {
  const { low_freq_factor: low, high_freq_factor: high } = rope;
  const turnsInContext = (rope.original_max_position_embeddings * turn) / (2 * Math.PI);
  const kept = Math.min(1, Math.max(0, (turnsInContext - low) / (high - low)));
  return kept * turn + ((1 - kept) * turn) / rope.factor;
}

// Each head turned by the position; the pairs are (d, d + D/2).
function rotate(vectors, positionId, turns) {
  const half = turns.length;
  return vectors.map((x) => {
    const turned = new Float64Array(2 * half);
    for (let d = 0; d < half; d++) {
      const cos = Math.cos(positionId * turns[d]);
      const sin = Math.sin(positionId * turns[d]);
      turned[d] = x[d] * cos - x[d + half] * sin;
      turned[d + half] = x[d + half] * cos + x[d] * sin;
    }
    return turned;
  });
}

function heads(x, D) {
  return range(x.length / D).map((h) => x.subarray(h * D, (h + 1) * D));
}

function dot(x, y) {
  let total = 0;
  for (let i = 0; i < x.length; i++) total += x[i] * y[i];
  return total;
}

function sum(x, y) {
  return x.map((value, i) => value + y[i]);
}

function softmax(scores) {
  const top = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}
