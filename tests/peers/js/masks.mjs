// The masks. s holds the segment ids of the tokens of a sequence so far: -1 padding, 0 text,
// 1..n the items of the history, n + 1 the target. The query j is the last of them: what reads one
// token after the other needs no matrix and cannot see the future.

export function kindOfLayer(layer, numLayers, scheme) {
  if (layer < scheme.intra_layers) return "IN";
  if (layer >= numLayers - scheme.cross_layers) return "CR";
  return "OR";
}

// The indices of the keys that the last token may attend to.
export function visibleKeys(kind, s, scheme) {
  const j = s.length - 1;
  const keys = [];
  for (let k = 0; k <= j; k++) {
    if (s[j] !== -1 && s[k] !== -1 && isVisible(kind, s, j, k, scheme)) keys.push(k);
  }
  return keys.length > 0 ? keys : [j]; // padding, and a query that is left with no key
}

// Between real tokens, k not after j.
function isVisible(kind, s, j, k, scheme) {
  const isItem = s[j] >= 1;
  if (kind === "IN" && scheme.text === "isolated") return !isItem || s[k] === s[j];
  if (kind === "IN") return !(isItem && s[k] >= 1 && s[k] !== s[j]);
  if (kind === "CR") return !(isItem && s[k] === s[j] && (j !== k || !scheme.cross_self));
  return true;
}
