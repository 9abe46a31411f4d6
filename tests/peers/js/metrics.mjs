// The stage `metrics`: from scores (-Infinity: not returned) or lists to ranks, metrics, means.
//
// Items of one title are one answer: title_of says of each item the first item with its title.

import { range } from "./tensors.mjs";

const CUTOFFS = [1, 5, 10];
const PERCENTILES = [2.5, 97.5];

export function runMetrics({ info, inputs }) {
  const { ranks, ...metrics } = metricsOf(info, inputs, inputs.scores, inputs.lists);
  const outputs = { ranks, ...metrics };
  for (const [name, values] of Object.entries(metrics)) outputs[`mean.${name}`] = mean(values);
  const differences = {};
  if (inputs.second_scores || inputs.second_lists) {
    const second = metricsOf(info, inputs, inputs.second_scores, inputs.second_lists);
    outputs["second.ranks"] = second.ranks;
    for (const [name, values] of Object.entries(metrics)) {
      differences[name] = values.map((value, u) => second[name][u] - value);
      outputs[`difference.${name}`] = mean(differences[name]);
    }
  }
  if (inputs.draws) {
    for (const [name, values] of Object.entries(metrics)) {
      outputs[`interval.${name}`] = interval(values, inputs);
    }
    for (const [name, values] of Object.entries(differences)) {
      outputs[`difference_interval.${name}`] = interval(values, inputs);
    }
  }
  return outputs;
}

// Ranks and metrics of each target. There is no AUC where not all scores are known.
function metricsOf(info, inputs, scores, lists) {
  const targets = Array.from(inputs.targets, (item) => inputs.title_of[item]);
  const metrics = {};
  if (lists) {
    metrics.ranks = targets.map((target, u) => rankInList(target, lists[u], inputs.title_of));
  } else {
    const rankings = targets.map((target, u) => ranking(target, u, scores[u], info, inputs));
    const width = info.width ?? Infinity;
    metrics.ranks = rankings.map(({ rank }) => (rank <= width ? rank : Infinity));
    if (info.width === null) metrics.AUC = rankings.map(({ auc }) => auc);
  }
  for (const k of CUTOFFS) {
    metrics[`HR@${k}`] = metrics.ranks.map((rank) => (rank <= k ? 1 : 0));
    metrics[`NDCG@${k}`] = metrics.ranks.map((rank) => (rank <= k ? 1 / Math.log2(rank + 1) : 0));
  }
  metrics.MRR = metrics.ranks.map((rank) => 1 / rank);
  return metrics;
}

function rankInList(target, items, titleOf) {
  const returned = Array.from(items).filter((item) => item !== -1);
  const place = returned.findIndex((item) => titleOf[item] === target);
  return place === -1 ? Infinity : place + 1;
}

// Rank and AUC of a target among the other titles of its candidates.
function ranking(target, u, scores, info, inputs) {
  const { candidates, seen, title_of: titleOf } = inputs;
  const seenTitles = info.exclude_seen ? titlesOf(seen[u], titleOf) : new Set();
  const scoreOf = (title) => (seenTitles.has(title) ? -Infinity : scores[title]);
  const score = scoreOf(target);
  if (score === -Infinity) return { rank: Infinity, auc: 0 };
  const negatives = titlesOf(candidates[u], titleOf);
  negatives.delete(target);
  let higher = 0;
  let lower = 0;
  let equalBefore = 0; // of equal scores the earlier one of the catalogue comes first
  for (const title of negatives) {
    if (scoreOf(title) > score) higher += 1;
    else if (scoreOf(title) < score) lower += 1;
    else if (title < target) equalBefore += 1;
  }
  const equal = negatives.size - higher - lower;
  return { rank: 1 + higher + equalBefore, auc: (lower + equal / 2) / negatives.size };
}

// The titles of the items that are chosen: a Set.
function titlesOf(isChosen, titleOf) {
  return new Set(Array.from(titleOf).filter((_, item) => isChosen[item] === 1));
}

function mean(values) {
  return values.reduce((total, value) => total + value, 0) / values.length;
}

// Two percentiles of the means of the draws. A drawn user brings all targets, as often as drawn.
function interval(values, inputs) {
  const users = Array.from(inputs.user_ids);
  const means = inputs.draws.map((draw) => {
    const drawn = Array.from(draw, (user) => values.filter((_, u) => users[u] === user));
    return mean(drawn.flat());
  });
  return PERCENTILES.map((percentile) => percentileOf(means, percentile));
}

// Between two values it is interpolated.
function percentileOf(values, percentile) {
  const sorted = [...values].sort((a, b) => a - b); // without a function, sort compares as text
  const place = (percentile / 100) * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}
