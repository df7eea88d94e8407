import test from "ava";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { type AdapterFiles, exportAdapter, importAdapter, mergeAdapter } from "#common/graph/adapter.js";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { parameterLayout } from "#common/graph/layout.js";
import { parseSafetensors, writeSafetensors } from "#common/graph/safetensors.js";
import { variantLayout } from "#common/graph/variant.js";

const model = (fields: Record<string, unknown>): ModelConfig => {
  const parsed = parseModelConfig({ vocabSize: 11, contextLength: 16, layers: 2, heads: 2, width: 8, ...fields });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
};
const llama = model({ family: "llama", kvHeads: 1, innerWidth: 12 });
const gpt2 = model({ family: "gpt2" });
const lora = { rank: 3, alpha: 6, targets: ["q_proj", "down_proj"] };
const adapter = initVariant(llama, { lora }, 4).map((x, i) => x + Math.sin(i));

const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
const readJson = (bytes: Uint8Array): Record<string, unknown> =>
  JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
const files = exportAdapter(llama, lora, adapter);

test("an adapter goes out as peft has it and comes in again", (t) => {
  t.like(readJson(files["adapter_config.json"]), { peft_type: "LORA", r: 3, lora_alpha: 6, bias: "none" });
  const parsed = parseSafetensors(files["adapter_model.safetensors"]);
  if (!parsed.ok) return t.fail(parsed.reason);
  t.is(parsed.tensors.size, 2 * 2 * 2);
  const prefix = "base_model.model.model.layers.1";
  t.deepEqual(parsed.tensors.get(`${prefix}.mlp.down_proj.lora_A.weight`)?.shape, [3, 12]);
  t.deepEqual(parsed.tensors.get(`${prefix}.mlp.down_proj.lora_B.weight`)?.shape, [8, 3]);
  const imported = importAdapter(llama, files);
  t.like(imported, { ok: true, lora, weights: adapter });
});

test("a first adapter changes nothing", (t) => {
  const base = initWeights(llama, 1);
  t.deepEqual(mergeAdapter(llama, base, lora, initVariant(llama, { lora }, 7)), base);
});

test("merging adds s B A, transposed for GPT-2's Conv1D", (t) => {
  const spec = { rank: 2, alpha: 8, targets: ["attn.c_attn"], rankStabilized: true };
  const weights = initVariant(gpt2, { lora: spec }, 3).map((_, i) => Math.cos(i));
  const base = initWeights(gpt2, 1);
  const merged = mergeAdapter(gpt2, base, spec, weights);
  const { trainable } = variantLayout(gpt2, { lora: spec });
  const [a, b] = trainable.tensors;
  const place = parameterLayout(gpt2).tensors.find(({ name }) => name === "transformer.h.0.attn.c_attn.weight");
  if (a === undefined || b === undefined || place === undefined) return t.fail();
  t.regex(a.name, /^base_model\.model\.transformer\.h\.0\.attn\.c_attn\.lora_A\.weight$/);
  const scale = 8 / Math.SQRT2;
  for (const [from, to] of [
    [0, 0],
    [7, 23],
    [3, 10],
  ] as const) {
    const at = place.offset + from * 24 + to;
    const product = [0, 1].reduce(
      (sum, r) => sum + (weights[b.offset + to * 2 + r] ?? NaN) * (weights[a.offset + r * 8 + from] ?? NaN),
      0,
    );
    t.true(Math.abs((merged[at] ?? NaN) - ((base[at] ?? NaN) + scale * product)) < 1e-6);
  }
  const changed = merged.filter((x, i) => x !== base[i]).length;
  t.true(changed > 350 && changed <= 2 * 8 * 24, `${changed}`);
});

test("what peft writes besides is read: all-linear, rank-stabilised, neutral fields", (t) => {
  const spec = { rank: 1, alpha: 2, targets: ["all-linear"], rankStabilized: true };
  const written = exportAdapter(llama, spec, initVariant(llama, { lora: spec }, 1));
  const config = { ...readJson(written["adapter_config.json"]), base_model_name_or_path: "x", lora_dropout: 0.05 };
  const more = { ...config, rank_pattern: {}, modules_to_save: null, use_dora: false, layers_to_transform: null };
  const imported = importAdapter(llama, { ...written, "adapter_config.json": json(more) });
  t.like(imported, { ok: true, lora: spec });
  t.is(variantLayout(llama, { lora: spec }).adapters.length, 14);
});

const fieldsOf = (change: Partial<AdapterFiles>): string[] => {
  const imported = importAdapter(llama, { ...files, ...change });
  return imported.ok ? [] : imported.violations.map(({ field }) => field);
};
const configWith = (change: Record<string, unknown>): Partial<AdapterFiles> => ({
  "adapter_config.json": json({ ...readJson(files["adapter_config.json"]), ...change }),
});
const refused: [string, Partial<AdapterFiles>, string[]][] = [
  ["no JSON", { "adapter_config.json": new TextEncoder().encode("{") }, ["adapter_config.json"]],
  ["another method", configWith({ peft_type: "IA3" }), ["peft_type"]],
  ["DoRA", configWith({ use_dora: true }), ["use_dora"]],
  ["trained biases", configWith({ bias: "all" }), ["bias"]],
  ["whole modules", configWith({ modules_to_save: ["lm_head"] }), ["modules_to_save"]],
  ["ranks that differ", configWith({ rank_pattern: { q_proj: 8 } }), ["rank_pattern"]],
  ["a pattern for targets", configWith({ target_modules: ".*_proj" }), ["target_modules"]],
  ["a target that the model lacks", configWith({ target_modules: ["c_attn"] }), ["lora.targets"]],
  ["a broken file", { "adapter_model.safetensors": new Uint8Array(4) }, ["adapter_model.safetensors"]],
];
for (const [what, change, fields] of refused) {
  test(`an adapter with ${what} is refused by name`, (t) => {
    t.deepEqual(fieldsOf(change), fields);
  });
}

test("tensors that are missing, foreign, misshapen or not finite are named", (t) => {
  const parsed = parseSafetensors(files["adapter_model.safetensors"]);
  if (!parsed.ok) return t.fail();
  const name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
  const changed = (
    change: (tensors: Map<string, { shape: readonly number[]; data: Float32Array }>) => void,
  ): string[] => {
    const tensors = new Map(parsed.tensors);
    change(tensors);
    return fieldsOf({ "adapter_model.safetensors": writeSafetensors(tensors) });
  };
  t.deepEqual(
    changed((map) => map.delete(name)),
    [name],
  );
  t.deepEqual(
    changed((map) => map.set("x", { shape: [1], data: new Float32Array(1) })),
    ["x"],
  );
  t.deepEqual(
    changed((map) => map.set(name, { shape: [8, 3], data: new Float32Array(24) })),
    [name],
  );
  t.deepEqual(
    changed((map) => map.set(name, { shape: [3, 8], data: new Float32Array(24).fill(Infinity) })),
    [name],
  );
});

test("weights of another adapter are not exported", (t) => {
  t.throws(() => exportAdapter(llama, lora, new Float32Array(3)), { instanceOf: RangeError });
});

const folder = resolve("../shared/fixtures/parity/llama-tiny-lora");
const absent = !existsSync(folder) && process.env["CI"] === undefined;
(absent ? test.skip : test)("a published adapter comes out as it went in (needs ../shared)", (t) => {
  const read = (name: string): Uint8Array => new Uint8Array(readFileSync(join(folder, name)));
  const config = parseModelConfig(JSON.parse(new TextDecoder().decode(read("config.json"))));
  if (!config.ok) return t.fail();
  const published = {
    "adapter_config.json": read("adapter_config.json"),
    "adapter_model.safetensors": read("adapter_model.safetensors"),
  };
  const imported = importAdapter(config.config, published);
  if (!imported.ok) return t.fail(JSON.stringify(imported.violations));
  t.deepEqual(exportAdapter(config.config, imported.lora, imported.weights, imported.template), published);
});
