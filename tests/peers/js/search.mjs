// The stage `search`: the log-probability of every title, and the lists of a beam search.
//
// The catalogue is a tree of tokens. Where a node of it stands after a prompt, a state holds the
// logits of what comes next: from a table of the case, or from a model with a cache.

import { copyOf, Llama } from "./llama.mjs";
import { logSumExp } from "./loss.mjs";

export function runSearch(goldenCase) {
  const { info, inputs } = goldenCase;
  const root = treeOf(inputs.titles, inputs.title_in_item);
  const source = inputs.prefixes ? new Table(inputs) : new Model(goldenCase);
  const outputs = { title_log_probs: [], beam_titles: [], beam_scores: [] };
  inputs.excluded.forEach((isExcluded, n) => {
    const start = source.start(n);
    const logProbs = new Float64Array(inputs.titles.length);
    scoreTitles({ node: root, state: start, score: 0 }, { source, info, logProbs });
    outputs.title_log_probs.push(logProbs);
    const search = { source, info, isOpen: openNodes(root, isExcluded) };
    const found = beamSearch({ node: root, state: start, score: 0 }, search);
    const empty = Array(info.width - found.length).fill();
    outputs.beam_titles.push([...found.map(({ node }) => node.titles[0]), ...empty.fill(-1)]);
    outputs.beam_scores.push([...found.map(({ score }) => score), ...empty.fill(-Infinity)]);
  });
  return outputs;
}

// The tree's root. titles: the numbers of the titles that end at a node, several where they are
// equal. first: the first title at or below it. inItem: does its token belong to the target item?
function treeOf(titles, inItem) {
  const root = { token: null, children: new Map(), titles: [], first: 0 };
  titles.forEach((tokens, number) => {
    let node = root;
    tokens.forEach((token, depth) => {
      if (token === -1) return;
      if (!node.children.has(token)) {
        const isInItem = inItem?.[number][depth] === 1;
        const child = { token, children: new Map(), titles: [], first: number, inItem: isInItem };
        node.children.set(token, child);
      }
      node = node.children.get(token);
    });
    node.titles.push(number);
  });
  return root;
}

// The nodes that lead to a title that may be returned: a Set.
function openNodes(node, isExcluded, open = new Set()) {
  for (const child of node.children.values()) openNodes(child, isExcluded, open);
  const endsTitle = node.titles.length > 0 && !node.titles.some((title) => isExcluded[title]);
  if (endsTitle || [...node.children.values()].some((child) => open.has(child))) open.add(node);
  return open;
}

// Log-probabilities of the tokens after a node: a Float64Array (V).
function logProbsAfter({ node, state }, { softmax, temperature }) {
  const logits = state.logits.map((logit) => logit / temperature);
  const isCatalogue = softmax === "catalogue";
  const among = isCatalogue ? [...node.children.keys()].map((token) => logits[token]) : logits;
  const total = logSumExp(among);
  return logits.map((logit) => logit - total);
}

// Writes the log-probability of every title below a node into logProbs, excluded ones too.
function scoreTitles(beam, { source, info, logProbs }) {
  for (const title of beam.node.titles) logProbs[title] = beam.score;
  if (beam.node.children.size === 0) return;
  const next = logProbsAfter(beam, info);
  for (const node of beam.node.children.values()) {
    const state = node.children.size > 0 ? source.next(beam.state, node) : null;
    scoreTitles({ node, state, score: beam.score + next[node.token] }, { source, info, logProbs });
  }
}

// The best titles, best first: those that end among the best `width` candidates of a step are
// found; the best `width` candidates that do not end live on, and a found one takes no place.
function beamSearch(start, { source, info, isOpen }) {
  let live = [start];
  let found = [];
  while (live.length > 0) {
    const candidates = live.flatMap((beam) => childrenOf(beam, info, isOpen)).sort(byScore);
    const ended = candidates.slice(0, info.width).filter(({ node }) => node.titles.length > 0);
    found = [...found, ...ended].sort(byScore).slice(0, info.width);
    live = candidates.filter(({ node }) => node.titles.length === 0).slice(0, info.width);
    live = live.map((beam) => ({ ...beam, state: source.next(beam.state, beam.node) }));
  }
  return found;
}

// A beam with each of its open children; `state` is still that of the parent.
function childrenOf(beam, info, isOpen) {
  const next = logProbsAfter(beam, info);
  const open = [...beam.node.children.values()].filter((node) => isOpen.has(node));
  return open.map((node) => ({
    node,
    state: beam.state,
    score: beam.score + next[node.token],
  }));
}

// Best first; of equal scores the one that begins the earlier title of the catalogue.
function byScore(a, b) {
  return b.score - a.score || a.node.first - b.node.first;
}

// Logits from the table of a case: prefix_logits (N, R, V) after prefixes (R, M).
class Table {
  constructor({ prefixes, prefix_logits: logits }) {
    this.logits = logits;
    this.rows = new Map(prefixes.map((prefix, row) => [keyOf(prefix), row]));
  }

  start(n) {
    return this.state(n, []);
  }

  next({ n, prefix }, node) {
    return this.state(n, [...prefix, node.token]);
  }

  state(n, prefix) {
    return { n, prefix, logits: this.logits[n][this.rows.get(keyOf(prefix))] };
  }
}

function keyOf(prefix) {
  return Array.from(prefix).filter((token) => token !== -1).join(" ");
}

// Logits from a model. A generated token has the target's segment, the one after the history's, or
// 0 where it is text; its position is the next one after the prompt's real tokens.
class Model {
  constructor(goldenCase) {
    this.llama = new Llama(goldenCase);
    this.inputs = goldenCase.inputs;
  }

  start(n) {
    const segments = this.inputs.prompt_segment_ids[n];
    const positions = this.inputs.prompt_position_ids[n];
    const cache = this.llama.emptyCache();
    let logits = null;
    let length = 0;
    this.inputs.prompt_ids[n].forEach((id, t) => {
      const next = this.llama.read(cache, id, segments[t], positions[t]);
      if (segments[t] === -1) return;
      logits = next; // of the last real token
      length += 1;
    });
    return { cache, logits, target: Math.max(0, ...segments) + 1, length };
  }

  next({ cache, target, length }, node) {
    const copy = copyOf(cache);
    const logits = this.llama.read(copy, node.token, node.inItem ? target : 0, length);
    return { cache: copy, logits, target, length: length + 1 };
  }
}
