import test from "ava";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { encodeWeights, type WeightType } from "#common/graph/dtypes.js";
import { exportFolder, type FolderFiles, importFolder, type ImportedFolder } from "#common/graph/folder.js";
import { initWeights } from "#common/graph/init.js";
import { parameterLayout } from "#common/graph/layout.js";
import { parseSafetensors } from "#common/graph/safetensors.js";
import { fromHalf, toHalf } from "#common/tensor/half.js";

const parsed = parseModelConfig({
  ...{ family: "llama", vocabSize: 11, contextLength: 16, layers: 2, heads: 4, kvHeads: 2, width: 8, innerWidth: 12 },
});
if (!parsed.ok) throw new Error("config");
const tiny: ModelConfig = parsed.config;

interface Part {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

function safetensors(parts: readonly Part[], padding = 0): Uint8Array {
  let offset = 0;
  const entries = parts.map(({ name, dtype, shape, bytes }) => {
    const begin = offset;
    offset += bytes.length;
    return [name, { shape, dtype, data_offsets: [begin, offset] }] as const;
  });
  const json = `${JSON.stringify({ ...Object.fromEntries(entries), __metadata__: { by: "test" } })}${" ".repeat(padding)}`;
  const header = new TextEncoder().encode(json);
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(header.length), true);
  return Buffer.concat([length, header, ...parts.map(({ bytes }) => bytes)]);
}

/** The tiny model's tensors, each in its own type in turn. */
function tensors(dtypes: readonly WeightType[]): Part[] {
  const weights = initWeights(tiny, 5);
  return parameterLayout(tiny).tensors.map(({ name, shape, offset, size }, i) => {
    const dtype = dtypes[i % dtypes.length] ?? "F32";
    return { name, dtype, shape, bytes: encodeWeights(dtype, weights.slice(offset, offset + size)) };
  });
}

const config = exportCheckpoint(tiny, initWeights(tiny, 5))["config.json"];
const mixed = ["BF16", "F16", "F32"] as const;

function imported(files: FolderFiles): Extract<ImportedFolder, { ok: true }> {
  const result = importFolder(files);
  if (!result.ok) throw new Error(JSON.stringify(result.violations));
  return result;
}

const fieldsOf = (files: FolderFiles): string[] => {
  const result = importFolder(files);
  return result.ok ? [] : result.violations.map(({ field }) => field);
};

const withBytes = (files: FolderFiles): Record<string, Uint8Array> =>
  Object.fromEntries([...files].map(([name, bytes]) => [name, new Uint8Array(bytes)]));

test("a file of mixed types, odd order, padding, ties and buffers comes out as it went in", (t) => {
  const parts = tensors(mixed).reverse();
  const table = parts.find(({ name }) => name === "model.embed_tokens.weight");
  if (table === undefined) return t.fail();
  const buffer = {
    name: "model.layers.0.self_attn.rotary_emb.inv_freq",
    dtype: "I64",
    shape: [2],
    bytes: new Uint8Array(16).fill(7),
  };
  const head = { ...table, name: "lm_head.weight" };
  const renamed = parts.map((part) => ({ ...part, name: part.name.replace(/^model\./, "") }));
  const files = new Map([
    ["config.json", new Uint8Array(config)],
    ["model.safetensors", safetensors([head, ...renamed, buffer], 3)],
  ]);
  const { weights, template } = imported(files);
  t.deepEqual(withBytes(exportFolder(tiny, weights, template)), withBytes(files));
});

test("shards come out as they went in, and the vector is that of one file", (t) => {
  const parts = tensors(mixed);
  const shards = [parts.slice(0, 7), parts.slice(7)];
  const names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  const map = Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, names[i]])));
  const index = new TextEncoder().encode(JSON.stringify({ metadata: { total_size: 1 }, weight_map: map }));
  const files = new Map([
    ["config.json", new Uint8Array(config)],
    ["model.safetensors.index.json", index],
  ]);
  names.forEach((name, i) => files.set(name, new Uint8Array(safetensors(shards[i] ?? []))));
  const { weights, template } = imported(files);
  t.deepEqual(withBytes(exportFolder(tiny, weights, template)), withBytes(files));
  t.deepEqual(
    weights,
    imported(
      new Map([
        ["config.json", config],
        ["model.safetensors", safetensors(parts)],
      ]),
    ).weights,
  );

  const without = (name: string): FolderFiles => new Map([...files].filter(([file]) => file !== name));
  t.deepEqual(fieldsOf(without(names[1] ?? "")), [names[1]]);
  const moved = { ...map, "model.norm.weight": names[0] };
  const wrongIndex = new TextEncoder().encode(JSON.stringify({ weight_map: moved }));
  t.deepEqual(fieldsOf(new Map([...files, ["model.safetensors.index.json", wrongIndex]])), ["model.norm.weight"]);
  for (const path of ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", 3]) {
    const outside = new TextEncoder().encode(JSON.stringify({ weight_map: { ...map, "model.norm.weight": path } }));
    t.deepEqual(fieldsOf(new Map([...files, ["model.safetensors.index.json", outside]])), [
      "model.safetensors.index.json.weight_map",
    ]);
  }
});

test("trained weights are rounded to the file's types, to nearest", (t) => {
  const files = new Map([
    ["config.json", config],
    ["model.safetensors", safetensors(tensors(mixed))],
  ]);
  const { weights, template } = imported(files);
  const trained = weights.map((x, i) => x + Math.sin(i) / 100);
  const written = parseSafetensors(exportFolder(tiny, trained, template).get("model.safetensors") ?? new Uint8Array());
  if (!written.ok) return t.fail(written.reason);
  for (const { name, offset, size } of parameterLayout(tiny).tensors) {
    const data = written.tensors.get(name)?.data ?? new Float32Array();
    const worst = Math.max(...data.map((x, i) => Math.abs(x / (trained[offset + i] ?? NaN) - 1)));
    t.true(data.length === size && worst <= 2 ** -8, `${name} ${worst}`);
  }
});

test("weights of another type or with a NaN are refused by name", (t) => {
  const change = (part: Partial<Part>): string[] => {
    const parts = tensors(["BF16"]).map((one) => (one.name === "model.norm.weight" ? { ...one, ...part } : one));
    return fieldsOf(
      new Map([
        ["config.json", config],
        ["model.safetensors", safetensors(parts)],
      ]),
    );
  };
  t.deepEqual(change({ dtype: "I16" }), ["model.norm.weight"]);
  t.deepEqual(change({ bytes: new Uint8Array(16).fill(255) }), ["model.norm.weight"]);
  t.deepEqual(change({ name: "model.norm.scale" }).sort(), ["model.norm.scale", "model.norm.weight"]);
});

test("half precision is written to nearest, ties to even, as the codecs' own", (t) => {
  const values = Float32Array.from({ length: 40_000 }, (_, i) => {
    if (i < 20_000) return Math.sin(i * 1.7) * 2 ** ((i % 48) - 28);
    // Halfway between two halves, and beside it.
    return ((fromHalf(i % 0x7bff) + fromHalf((i % 0x7bff) + 1)) / 2) * (1 + ((i % 3) - 1) * 2 ** -22);
  });
  const bits = new Uint16Array(Uint8Array.from(encodeWeights("F16", values)).buffer);
  t.true(values.every((x, i) => bits[i] === toHalf(x)));
});

const shared = resolve("../shared");
const absent = !existsSync(shared) && process.env["CI"] === undefined;
(absent ? test.skip : test)("published folders come out as they went in (needs ../shared)", (t) => {
  const cases = readdirSync(join(shared, "fixtures/parity")).map((name) => join(shared, "fixtures/parity", name));
  for (const folder of [...cases, join(shared, "models/stories260K")]) {
    const files = new Map(
      ["config.json", "model.safetensors"].map((name) => [name, new Uint8Array(readFileSync(join(folder, name)))]),
    );
    const result = imported(files);
    t.deepEqual(withBytes(exportFolder(result.config, result.weights, result.template)), withBytes(files), folder);
  }
});
