// A port to JavaScript, written from the golden files alone: no package, all arithmetic in float64.
//
//     node port.mjs GOLDEN OUT [NAME ...]
//
// reads GOLDEN/index.json, runs its cases (or those of these names) and writes OUT/NAME.safetensors
// for each: the dump that `check` compares with the case. Left out are prompts that need a
// tokenizer.

import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { runDecoding } from "./decoding.mjs";
import { runLoss } from "./loss.mjs";
import { runMetrics } from "./metrics.mjs";
import { runModel } from "./model.mjs";
import { runPrompts } from "./prompts.mjs";
import { runSearch } from "./search.mjs";
import { readSafetensors, writeSafetensors } from "./tensors.mjs";

const STAGES = {
  prompts: runPrompts,
  model: runModel,
  decoding: runDecoding,
  loss: runLoss,
  search: runSearch,
  metrics: runMetrics,
};

// A case: info is what case.json holds, inputs the tensors that it lists as such, weights by name.
function readCase(folder) {
  const info = JSON.parse(readFileSync(join(folder, "case.json"), "utf8"));
  const tensors = readSafetensors(join(folder, "tensors.safetensors"));
  const inputs = Object.fromEntries(info.inputs.map((name) => [name, tensors[name]]));
  const weights = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    if (name.startsWith("weights.")) weights[name.slice("weights.".length)] = tensor;
  }
  return { info, inputs, weights };
}

function main(golden, out, ...names) {
  const index = JSON.parse(readFileSync(join(golden, "index.json"), "utf8"));
  mkdirSync(out, { recursive: true });
  for (const name of names.length > 0 ? names : index.map((entry) => entry.name)) {
    const goldenCase = readCase(join(golden, "cases", name));
    const outputs = STAGES[goldenCase.info.stage](goldenCase);
    if (outputs !== null) writeSafetensors(join(out, `${name}.safetensors`), outputs);
  }
}

main(...process.argv.slice(2));
