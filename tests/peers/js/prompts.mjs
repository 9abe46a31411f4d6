// The stage `prompts`: from titles to one string, and from the offsets of its tokens to segment ids.
// Only cases that give the offsets; a tokenizer is more than a port of this size can hold.
//
// Offsets count code points. JavaScript's strings count UTF-16 units, of which an emoji has two, so
// the string is built as an array of code points.

import { range } from "./tensors.mjs";

const NO_CHARACTER = -1;

export function runPrompts({ info, inputs }) {
  if (info.tokenizer !== null) return null;
  const { layout, scheme } = info;
  const history = info.history.map(clean);
  const target = { number: history.length + 1, title: info.target && clean(info.target) };
  const characters = charactersOf(layout, history, target);
  const tokens = inputs.offsets.map(([begin]) => ({ begin, ...characters[begin] }));
  if (layout.bos) tokens.unshift({ begin: NO_CHARACTER, number: 0, isDelimiter: false });
  if (layout.eos && info.target !== null) {
    tokens.push({ begin: NO_CHARACTER, number: target.number, isDelimiter: true });
  }
  const firstOfTarget = tokens.findIndex(({ number }) => number === target.number);
  const text = characters.map(({ character }) => character).join("");
  return {
    text: Float64Array.from(Buffer.from(text, "utf8")),
    begins: tokens.map(({ begin }) => begin),
    item_numbers: tokens.map(({ number }) => number),
    segment_ids: tokens.map((token) => segmentId(token, target.number, scheme)),
    prompt_length: firstOfTarget === -1 ? tokens.length : firstOfTarget,
  };
}

// The code points of the string, each with the number of its item (0: text) and whether it is one
// of the delimiters around a title.
function charactersOf(layout, history, target) {
  const characters = [];
  const append = (text, number, isDelimiter) => {
    for (const character of text ?? "") characters.push({ character, number, isDelimiter });
  };
  const appendItem = (open, title, close, number) => {
    append(open, number, true);
    append(title, number, false);
    append(close, number, true);
  };
  append(layout.before, 0, false);
  for (const index of range(history.length)) {
    const isLast = index === history.length - 1;
    const close = isLast ? layout.last_entry_close : layout.entry_close;
    appendItem(layout.entry_open, history[index], close, index + 1);
  }
  append(layout.after, 0, false);
  if (target.title !== null) {
    appendItem(layout.target_open, target.title, layout.target_close, target.number);
  }
  return characters;
}

function segmentId({ number, isDelimiter }, targetNumber, scheme) {
  if (isDelimiter && scheme.delimiters === "text") return 0;
  if (number === targetNumber && scheme.target === "text") return 0;
  return number;
}

// White space becomes one space, and none is left at the ends. (HTML entities are decoded, too:
// no case that gives offsets has any.)
function clean(title) {
  return title.replace(/\s+/gu, " ").trim();
}
