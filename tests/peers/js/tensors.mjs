// The safetensors format: 8 bytes, the length of a JSON header; the header, which says of each
// tensor its type, shape and place; then the numbers, little-endian, row after row.
//
// Here a tensor is a nested array: a number, or a Float64Array of the last dimension within arrays.
// Numbers of int64 come as BigInt. The ids of the golden cases are small, so they become numbers.

import { readFileSync, writeFileSync } from "node:fs";

const TYPES = {
  F64: Float64Array,
  F32: Float32Array,
  I64: BigInt64Array,
  I32: Int32Array,
  U8: Uint8Array,
  BOOL: Uint8Array,
};

export function readSafetensors(path) {
  const file = readFileSync(path);
  const headerLength = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + headerLength));
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end] = entry.data_offsets.map((offset) => 8 + headerLength + offset);
    // a copy: a typed array must begin at a multiple of its numbers' size
    const bytes = new Uint8Array(file.subarray(begin, end)).buffer;
    const numbers = Float64Array.from(new TYPES[entry.dtype](bytes), Number);
    tensors[name] = nested(numbers, entry.shape);
  }
  return tensors;
}

// Writes numbers and nested arrays as float64.
export function writeSafetensors(path, tensors) {
  const header = {};
  const parts = [];
  let offset = 0;
  for (const [name, tensor] of Object.entries(tensors)) {
    const numbers = Float64Array.from(flat(tensor));
    const end = offset + numbers.byteLength;
    header[name] = { dtype: "F64", shape: shapeOf(tensor), data_offsets: [offset, end] };
    parts.push(Buffer.from(numbers.buffer));
    offset = end;
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeFileSync(path, Buffer.concat([length, json, ...parts]));
}

function nested(numbers, shape) {
  if (shape.length === 0) return numbers[0];
  if (shape.length === 1) return numbers;
  const [rows, ...inner] = shape;
  const size = inner.reduce((product, length) => product * length, 1);
  return range(rows).map((row) => nested(numbers.subarray(row * size, (row + 1) * size), inner));
}

function shapeOf(tensor) {
  if (typeof tensor === "number") return [];
  return [tensor.length, ...(tensor.length > 0 ? shapeOf(tensor[0]) : [])];
}

function flat(tensor) {
  return typeof tensor === "number" ? [tensor] : Array.from(tensor).flat(Infinity).flatMap(flat);
}

// 0, 1, ..., length - 1
export function range(length) {
  return Array.from({ length }, (_, index) => index);
}
