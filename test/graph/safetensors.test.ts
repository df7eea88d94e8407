import test from "ava";
import fc from "fast-check";
import { exportCheckpoint, importCheckpoint } from "#common/graph/checkpoint.js";
import type { ModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { type NamedTensor, parseSafetensors, writeSafetensors } from "#common/graph/safetensors.js";

function file(header: unknown, body: Uint8Array | number): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = typeof body === "number" ? new Uint8Array(body) : body;
  const out = new Uint8Array(8 + json.length + bytes.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(bytes, 8 + json.length);
  return out;
}

const tensors: fc.Arbitrary<Map<string, NamedTensor>> = fc
  .uniqueArray(
    fc.record({
      // Names that look like numbers would be reordered by a JSON object; no model has them.
      name: fc.string({ minLength: 1 }).map((name) => `t${name}`),
      shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 }),
      fill: fc.float({ noNaN: true }),
    }),
    { selector: (tensor) => tensor.name, maxLength: 5 },
  )
  .map((list) => {
    const size = (shape: number[]): number => shape.reduce((product, d) => product * d, 1);
    return new Map(
      list.map(({ name, shape, fill }) => [name, { shape, data: new Float32Array(size(shape)).fill(fill) }]),
    );
  });

test("what is written is read back", (t) => {
  fc.assert(
    fc.property(tensors, (written) => {
      const bytes = writeSafetensors(written, { format: "pt" });
      const parsed = parseSafetensors(bytes);
      t.deepEqual(parsed, { ok: true, tensors: written });
      // The same inside a pooled Buffer at an odd address.
      const odd = Buffer.alloc(bytes.length + 1);
      odd.set(bytes, 1);
      t.deepEqual(parseSafetensors(odd.subarray(1)), { ok: true, tensors: written });
    }),
  );
});

test("half precision is decoded exactly", (t) => {
  const values = new Uint16Array([0x3c00, 0xc000, 0x0001, 0x7c00, 0x0000, 0x3555]);
  const f16 = parseSafetensors(
    file({ x: { dtype: "F16", shape: [6], data_offsets: [0, 12] } }, new Uint8Array(values.buffer)),
  );
  const smallest = 2 ** -24;
  t.deepEqual(f16.ok && [...(f16.tensors.get("x")?.data ?? [])], [1, -2, smallest, Infinity, 0, 0.333251953125]);
  const brain = new Uint16Array([0x3f80, 0xc000, 0x7f80, 0x3eab]);
  const bf16 = parseSafetensors(
    file({ x: { dtype: "BF16", shape: [2, 2], data_offsets: [0, 8] } }, new Uint8Array(brain.buffer)),
  );
  t.deepEqual(bf16.ok && [...(bf16.tensors.get("x")?.data ?? [])], [1, -2, Infinity, 0.333984375]);
});

const f32 = (shape: unknown, begin: unknown, end: unknown, dtype = "F32") => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});
const hostile: [string, Uint8Array, RegExp][] = [
  ["is empty", new Uint8Array(), /shorter/],
  ["claims a header of 2^64 bytes", new Uint8Array(16).fill(255), /beyond the file/],
  ["has a header that is not JSON", file("{oh", 0), /not JSON/],
  ["has a list as header", file([], 0), /not a JSON object/],
  ["has a number as tensor", file({ x: 3 }, 0), /tensor x: not an object/],
  ["has an unknown dtype", file({ x: f32([1], 0, 4, "F99") }, 4), /tensor x: dtype F99/],
  ["has a dtype that is an object's own method", file({ x: f32([1], 0, 4, "toString") }, 4), /dtype toString/],
  ["has a negative size", file({ x: f32([-1], 0, 4) }, 4), /shape/],
  ["has a size that is not whole", file({ x: f32([0.5, 2], 0, 4) }, 4), /shape/],
  ["has a shape beyond all memory", file({ x: f32([1e15, 1e15], 0, 4) }, 4), /needs/],
  ["has offsets in reverse", file({ x: f32([1], 4, 0) }, 4), /-4 bytes/],
  ["has overlapping tensors", file({ a: f32([2], 0, 8), b: f32([2], 4, 12) }, 12), /tensor b: begins at 4/],
  ["has a gap", file({ a: f32([1], 0, 4), b: f32([1], 8, 12) }, 12), /tensor b: begins at 8/],
  ["is truncated", file({ a: f32([4], 0, 16) }, 12), /16 bytes, the file has 12/],
  ["goes on after its last tensor", file({ a: f32([1], 0, 4) }, 12), /4 bytes, the file has 12/],
];
for (const [what, bytes, reason] of hostile) {
  test(`a file that ${what} is refused`, (t) => {
    const parsed = parseSafetensors(bytes);
    t.false(parsed.ok);
    t.regex(parsed.ok ? "" : parsed.reason, reason);
  });
}

test("no damaged file throws or yields more than it holds", (t) => {
  const whole = writeSafetensors(new Map([["a", { shape: [2, 3], data: new Float32Array(6) }]]));
  const damage = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(damage, fc.nat(whole.length), (changes, length) => {
      const bytes = whole.slice(0, length);
      changes.forEach(([i, byte]) => (bytes[i] = byte));
      const parsed = parseSafetensors(bytes);
      const size = parsed.ok ? [...parsed.tensors.values()].reduce((sum, { data }) => sum + data.length, 0) : 0;
      t.true(size <= length);
    }),
    { numRuns: 2000 },
  );
});

const tiny: ModelConfig = {
  family: "gpt2",
  vocabSize: 11,
  contextLength: 8,
  layers: 2,
  heads: 2,
  width: 8,
  layerNormEps: 1e-5,
};

/** Exported files with the tensors changed. */
function altered(change: (tensors: Map<string, NamedTensor>) => void): ReturnType<typeof importCheckpoint> {
  const files = exportCheckpoint(tiny, initWeights(tiny, 3));
  const parsed = parseSafetensors(files["model.safetensors"]);
  if (!parsed.ok) throw new Error(parsed.reason);
  const map = new Map(parsed.tensors);
  change(map);
  return importCheckpoint(files["config.json"], writeSafetensors(map));
}

const fieldsOf = (imported: ReturnType<typeof importCheckpoint>): string[] =>
  imported.ok ? [] : imported.violations.map((violation) => violation.field);

test("export, import and export again give the same bytes", (t) => {
  const weights = initWeights(tiny, 3);
  const files = exportCheckpoint(tiny, weights);
  const imported = importCheckpoint(files["config.json"], files["model.safetensors"]);
  t.deepEqual(imported, { ok: true, config: tiny, weights });
  if (!imported.ok) return;
  t.deepEqual(exportCheckpoint(imported.config, imported.weights), files);
});

test("names without the prefix, mask buffers and a copy of the tied head are accepted", (t) => {
  const imported = altered((map) => {
    const all = [...map];
    map.clear();
    for (const [name, tensor] of all) map.set(name.replace("transformer.", ""), tensor);
    map.set("h.0.attn.bias", { shape: [1, 1, 8, 8], data: new Float32Array(64) });
    map.set("lm_head.weight", { ...(map.get("wte.weight") as NamedTensor) });
  });
  t.deepEqual(imported, { ok: true, config: tiny, weights: initWeights(tiny, 3) });
});

test("missing, foreign, misshapen and broken tensors are named", (t) => {
  const name = "transformer.h.1.ln_2.bias";
  t.deepEqual(fieldsOf(altered((map) => map.delete(name))), [name]);
  t.deepEqual(fieldsOf(altered((map) => map.set("x", { shape: [1], data: new Float32Array(1) }))), ["x"]);
  t.deepEqual(fieldsOf(altered((map) => map.set(name, { shape: [2, 4], data: new Float32Array(8) }))), [name]);
  t.deepEqual(fieldsOf(altered((map) => map.set(name, { shape: [8], data: new Float32Array(8).fill(NaN) }))), [name]);
  const twice = "h.1.ln_2.bias";
  t.deepEqual(fieldsOf(altered((map) => map.set(twice, { shape: [8], data: new Float32Array(8) }))), [twice]);
  const head = "lm_head.weight";
  t.deepEqual(fieldsOf(altered((map) => map.set(head, { shape: [11, 8], data: new Float32Array(88) }))), [head]);
});

test("a config that is not JSON, cannot be built or a broken file is refused", (t) => {
  const files = exportCheckpoint(tiny, initWeights(tiny, 3));
  t.deepEqual(fieldsOf(importCheckpoint("{", files["model.safetensors"])), ["config.json"]);
  t.deepEqual(fieldsOf(importCheckpoint('{"model_type":"t5"}', files["model.safetensors"])), ["model_type"]);
  t.deepEqual(fieldsOf(importCheckpoint(files["config.json"], new Uint8Array(3))), ["model.safetensors"]);
});

test("weights of another model are not exported", (t) => {
  t.throws(() => exportCheckpoint(tiny, new Float32Array(5)), { instanceOf: RangeError });
});
