import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { parseModelConfig } from "#common/graph/config.js";
import { encodeWeights, type WeightType } from "#common/graph/dtypes.js";
import { initWeights } from "#common/graph/init.js";
import { parameterLayout } from "#common/graph/layout.js";

/** Model folders and tokenizers as an attacker would damage them, each from a seed. */

type Json = Record<string, unknown>;

/** Stands for lists inside lists, which are deeper than JSON.stringify can go. */
const DEEP = "lists inside lists";
const NESTED = `${"[".repeat(20_000)}${"]".repeat(20_000)}`;
const text = (value: unknown): Uint8Array =>
  new TextEncoder().encode(JSON.stringify(value).replaceAll(`"${DEEP}"`, NESTED));
const pick = <T>(rng: Rng, list: readonly T[]): T => list[rng.int(list.length)] as T;

const models = [
  { family: "llama", vocabSize: 7, contextLength: 4, layers: 1, heads: 2, kvHeads: 1, width: 4, innerWidth: 6 },
  { family: "gpt2", vocabSize: 7, contextLength: 4, layers: 1, heads: 2, width: 4 },
].map((fields) => {
  const parsed = parseModelConfig(fields);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
});

interface Part {
  readonly entry: [string, Json];
  readonly bytes: Uint8Array;
}

/** A file that is whole: its header as JSON, and its body. */
interface Weights {
  readonly header: Json;
  readonly body: Uint8Array;
}

function join(parts: readonly Part[]): Weights {
  let position = 0;
  const header: Json = { __metadata__: { format: "pt" } };
  for (const { entry, bytes } of parts) {
    const [name, fields] = entry;
    header[name] = { ...fields, data_offsets: [position, position + bytes.length] };
    position += bytes.length;
  }
  return { header, body: Buffer.concat(parts.map(({ bytes }) => bytes)) };
}

/** @param claimed the header's length as the file gives it */
export function safetensors(header: unknown, body: Uint8Array, claimed?: bigint): Uint8Array {
  const json = header instanceof Uint8Array ? header : text(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(claimed ?? BigInt(json.length));
  return Buffer.concat([length, json, body]);
}

/** What is put where something else belongs. */
const JUNK: readonly unknown[] = [
  ...[null, true, -1, 0, 0.5, 1, 3, 1e15, 2 ** 53, 1e308, "", "x", "F32", "F64", "I8", "toString", "__proto__"],
  ...["../model.safetensors", "/etc/passwd", "model.safetensors", "x".repeat(5000), [], {}, [[]], [-1], [1e15, 1e15]],
  ...[[0, 4], [4, 0], [0, 1e15], { toString: 1 }, { valueOf: null, length: 1e9 }, DEEP, "constructor", "\ud800"],
];

/** Every place inside a value, as the object that holds it and the key. */
function* placesIn(value: unknown): Generator<[Json, string]> {
  if (typeof value !== "object" || value === null) return;
  for (const key of Object.keys(value)) {
    yield [value as Json, key];
    yield* placesIn((value as Json)[key]);
  }
}

/** Exchanges, takes out or doubles something somewhere. */
function spoil(rng: Rng, value: unknown): void {
  const places = [...placesIn(value)];
  if (places.length === 0) return;
  const [holder, key] = pick(rng, places);
  const kind = rng.int(6);
  if (kind === 0) Reflect.deleteProperty(holder, key);
  else if (kind === 1) {
    const name = pick(rng, ["__proto__", "constructor", "extra", "lm_head.weight", "model.norm.weight", "0"]);
    Object.defineProperty(holder, name, { value: holder[key], enumerable: true, configurable: true, writable: true });
  } else if (kind === 2) {
    const [other, otherKey] = pick(rng, places);
    // A part inside itself could not be written.
    holder[key] = structuredClone(other[otherKey]);
  } else holder[key] = pick(rng, JUNK);
}

/** Damages bytes: flips some, cuts or lengthens. */
function damage(rng: Rng, bytes: Uint8Array): Uint8Array {
  const kind = rng.int(5);
  if (kind === 0) return bytes.slice(0, rng.int(bytes.length + 1));
  if (kind === 1) return Buffer.concat([bytes, Buffer.alloc(1 + rng.int(40), rng.int(256))]);
  const copy = bytes.slice();
  const region = kind === 2 ? Math.min(8, copy.length) : copy.length;
  for (let i = rng.int(6); i >= 0 && region > 0; i--) copy[rng.int(region)] = rng.int(256);
  return copy;
}

const NAMES = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] as const;

/** A folder with one or several things wrong with it, or, seldom, nothing that matters. */
export function hostileFolder(seed: number): Map<string, Uint8Array> {
  const rng = createRng(seed);
  const config = pick(rng, models);
  const weights = initWeights(config, 1);
  const parts = parameterLayout(config).tensors.map(({ name, shape, offset, size }): Part => {
    const dtype = pick<WeightType>(rng, ["F32", "F16", "BF16"]);
    const values = weights.slice(offset, offset + size);
    if (rng.int(200) === 0) values[rng.int(size)] = pick(rng, [NaN, Infinity, -Infinity]);
    return { entry: [name, { dtype, shape: [...shape] }], bytes: encodeWeights(dtype, values) };
  });
  const json = JSON.parse(new TextDecoder().decode(exportCheckpoint(config, weights)["config.json"])) as Json;
  if (rng.int(4) === 0) spoil(rng, json);
  const files = new Map([["config.json", text(json)]]);
  const half = parts.length >> 1;
  const sharded = rng.int(2) === 0;
  const wholes = sharded ? [join(parts.slice(0, half)), join(parts.slice(half))] : [join(parts)];
  wholes.forEach(({ header, body }, i) => {
    const honest = Object.keys(header);
    for (let k = rng.int(3); k > 0; k--) spoil(rng, header);
    const claimed = rng.int(20) === 0 ? BigInt(pick(rng, [0, 1, 7, 1e9, 2 ** 40])) << BigInt(rng.int(24)) : undefined;
    const bytes = safetensors(header, body, claimed);
    const name = sharded ? (NAMES[i] as string) : "model.safetensors";
    files.set(name, rng.int(3) === 0 ? damage(rng, bytes) : bytes);
    if (sharded) wholes[i] = { header: Object.fromEntries(honest.map((key) => [key, name])), body };
  });
  if (sharded) {
    const map = Object.assign({}, ...wholes.map(({ header }) => header)) as Json;
    delete map["__metadata__"];
    const index = { metadata: { total_size: 1 }, weight_map: map };
    if (rng.int(3) === 0) spoil(rng, index);
    files.set("model.safetensors.index.json", rng.int(10) === 0 ? damage(rng, text(index)) : text(index));
  }
  if (rng.int(50) === 0) files.delete(pick(rng, [...files.keys()]));
  return files;
}

/** A small byte-pair tokenizer with a part of every kind. */
export function wholeTokenizer(): Json {
  return {
    version: "1.0",
    added_tokens: [{ id: 8, content: "</s>", special: true, lstrip: false, rstrip: false, normalized: false }],
    normalizer: { type: "Sequence", normalizers: [{ type: "Replace", pattern: { String: "ß" }, content: "ss" }] },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: "'s|\\p{L}+| ?[^\\s\\p{L}]+|\\s+" }, behavior: "Isolated", invert: false },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: { type: "ByteLevel", add_prefix_space: true, trim_offsets: false },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true },
    model: {
      type: "BPE",
      unk_token: null,
      vocab: { h: 0, e: 1, l: 2, o: 3, he: 4, ll: 5, hell: 6, hello: 7 },
      merges: ["h e", "l l", "he ll", "hell o"],
    },
  };
}

export function hostileTokenizer(seed: number): Uint8Array {
  const rng = createRng(seed);
  const json = wholeTokenizer();
  for (let k = 1 + rng.int(3); k > 0; k--) spoil(rng, json);
  return rng.int(8) === 0 ? damage(rng, text(json)) : text(json);
}
