import test from "ava";
import fc from "fast-check";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { parseModelConfig } from "#common/graph/config.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { exportAdapter, importAdapter } from "#common/graph/adapter.js";
import { exportInferenceGraph } from "#common/graph/inference-export.js";
import { importFolder } from "#common/graph/folder.js";
import { readSafetensors, writeSafetensors } from "#common/graph/safetensors.js";
import { mergeTrained, variantOf } from "#common/graph/training.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { toBytes } from "#common/tensor/flat.js";
import { TrainingSpec } from "#proto/shoal/v1/job.js";
import { Model } from "#proto/shoal/v1/model.js";
import type { ImportRequest } from "#proto/shoal/v1/model_service.js";
import { decodeFolder, encodeFolder } from "#services/registry/folder-template.js";
import { ModelApi } from "#services/registry/model-api.js";

const parsed = parseModelConfig({ family: "gpt2", vocabSize: 4, contextLength: 8, layers: 1, heads: 2, width: 16 });
if (!parsed.ok) throw new Error("the test's own config cannot be built");
const { config } = parsed;
const WHOLE = exportCheckpoint(config, initWeights(config, 3));
const bytesOf = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value, null, 1));

/** The same model in two shards, with an alphabet and a companion that nothing here reads. */
function shardedFolder(): Map<string, Uint8Array> {
  const read = readSafetensors(WHOLE["model.safetensors"]);
  if (!read.ok) throw new Error(read.reason);
  const { entries, body } = read.file;
  const shard = (from: number, to: number): Uint8Array =>
    writeSafetensors(
      new Map(
        entries.slice(from, to).map(({ name, shape, begin, end }) => {
          const data = new Float32Array(body.slice(begin, end).buffer);
          return [name, { shape, data }];
        }),
      ),
      { format: "pt", note: "kept" },
    );
  const nameOf = (i: number): string => `model-0000${i < 3 ? 1 : 2}-of-00002.safetensors`;
  return new Map([
    ["config.json", WHOLE["config.json"]],
    ["shoal_tokenizer.json", bytesOf({ kind: "chars", chars: "abc\n" })],
    ["generation_config.json", bytesOf({ max_length: 7 })],
    [
      "model.safetensors.index.json",
      bytesOf({ weight_map: Object.fromEntries(entries.map((e, i) => [e.name, nameOf(i)])) }),
    ],
    [nameOf(0), shard(0, 3)],
    [nameOf(9), shard(3, entries.length)],
  ]);
}

const world = () => {
  const [store, blobs] = [new MemoryResourceStore(), new MemoryBlobStore()];
  return { store, blobs, api: new ModelApi({ store, blobs, log: new MemoryLog() }) };
};

async function* messages(
  name: string,
  files: ReadonlyMap<string, Uint8Array>,
  base = "",
): AsyncGenerator<ImportRequest> {
  await Promise.resolve();
  yield { part: { $case: "header", value: { name, tokenizerKind: "", base } } };
  for (const [fileName, bytes] of files) {
    for (let at = 0; at < bytes.length; at += 1000) {
      const data = Buffer.from(bytes.subarray(at, at + 1000));
      yield { part: { $case: "piece", value: { fileName, fileSizeBytes: bytes.length, data } } };
    }
  }
}

async function exported(api: ModelApi, name: string, form = ""): Promise<Map<string, Uint8Array>> {
  const answer = await api.export({ name, form, seqLen: 0 });
  if (!answer.ok) throw new Error(JSON.stringify(answer));
  const files = new Map<string, Uint8Array>();
  for (const { piece } of answer.value) {
    if (piece === undefined) throw new Error("an export without a piece");
    files.set(piece.fileName, Buffer.concat([files.get(piece.fileName) ?? new Uint8Array(), piece.data]));
  }
  return files;
}

test("a sharded folder comes out file by file as it went in, tokenizer and companions included", async (t) => {
  const { api } = world();
  const folder = shardedFolder();
  const imported = await api.import(messages("letters", folder));
  t.true(imported.ok);
  if (!imported.ok) return;
  t.deepEqual(imported.value.model?.tokenizer, { kind: "chars", chars: "abc\n", blob: undefined });
  const files = await exported(api, "letters");
  t.deepEqual([...files.keys()].sort(), [...folder.keys()].sort());
  for (const [name, bytes] of folder) t.true(Buffer.from(bytes).equals(files.get(name) ?? Buffer.alloc(0)), name);
});

test("an alphabet that does not name every token of the model is refused", async (t) => {
  const { api } = world();
  const folder = shardedFolder().set("shoal_tokenizer.json", bytesOf({ kind: "chars", chars: "abcde" }));
  const imported = await api.import(messages("letters", folder));
  t.false(imported.ok);
  t.regex(JSON.stringify(imported), /shoal_tokenizer\.json.*as many characters as the model has tokens, 4/);
});

const LORA = TrainingSpec.fromPartial({
  mode: "lora",
  lora: { rank: 2, alpha: 4, targets: ["c_attn"] },
  base: "int8",
});

test("an adapter is exported as peft keeps it, and merged into its base", async (t) => {
  const { api, store, blobs } = world();
  await api.import(messages("letters", shardedFolder()));
  const base = await store.get("Model", "letters");
  const variant = variantOf(LORA);
  const weights = initVariant(config, variant, 9).map((x, i) => x + Math.sin(i));
  const model: Model = {
    ...Model.fromPartial(base ?? {}),
    metadata: newMeta("tuned"),
    weights: await blobs.put(toBytes(weights)),
    base: { model: "letters", weights: base?.weights, training: LORA, adapter: undefined },
  };
  await store.create("Model", model);
  const adapter = await exported(api, "tuned", "adapter");
  const files = {
    "adapter_config.json": adapter.get("adapter_config.json") ?? new Uint8Array(),
    "adapter_model.safetensors": adapter.get("adapter_model.safetensors") ?? new Uint8Array(),
  };
  t.is(adapter.size, 2);
  t.regex(new TextDecoder().decode(files["adapter_config.json"]), /"base_model_name_or_path": "letters"/);
  const read = importAdapter(config, files);
  t.true(read.ok && Buffer.from(toBytes(read.weights)).equals(toBytes(weights)));
  const merged = importFolder(await exported(api, "tuned", "merged"));
  const wanted = mergeTrained(config, variant, initWeights(config, 3), weights);
  t.true(merged.ok && Buffer.from(toBytes(merged.weights)).equals(toBytes(wanted)));
  t.false(Buffer.from(toBytes(wanted)).equals(toBytes(initWeights(config, 3))));
  const whole = await api.export({ name: "letters", form: "adapter", seqLen: 0 });
  t.regex(JSON.stringify(whole), /is no adapter/);
  t.regex(
    JSON.stringify(await api.export({ name: "tuned", form: "gguf", seqLen: 0 })),
    /must be merged, adapter, onnx or empty/,
  );
});

/** An adapter's files as another tool might write them: other order and spacing, fields and metadata of its own. */
function foreignAdapter(weights: Float32Array): Map<string, Uint8Array> {
  const files = exportAdapter(config, { rank: 2, alpha: 4, targets: ["c_attn"] }, weights);
  const read = readSafetensors(files["adapter_model.safetensors"]);
  if (!read.ok) throw new Error(read.reason);
  const tensors = [...read.file.entries].reverse().map(({ name, shape, begin, end }) => {
    const data = new Float32Array(read.file.body.slice(begin, end).buffer);
    return [name, { shape, data }] as const;
  });
  const fields = JSON.parse(new TextDecoder().decode(files["adapter_config.json"])) as object;
  return new Map([
    ["adapter_config.json", bytesOf({ base_model_name_or_path: "somewhere/else", ...fields, peft_version: "0.15.1" })],
    ["adapter_model.safetensors", writeSafetensors(new Map(tensors), { format: "pt", note: "kept" })],
  ]);
}

test("an adapter's folder comes in beside its base and goes out byte by byte", async (t) => {
  const { api, store } = world();
  await api.import(messages("letters", shardedFolder()));
  const variant = variantOf(LORA);
  const weights = initVariant(config, variant, 9).map((x, i) => x + Math.sin(i));
  const folder = foreignAdapter(weights);
  const imported = await api.import(messages("style", folder, "letters"));
  t.true(imported.ok, JSON.stringify(imported));
  const files = await exported(api, "style", "adapter");
  t.deepEqual([...files.keys()].sort(), [...folder.keys()].sort());
  for (const [name, bytes] of folder) t.true(Buffer.from(bytes).equals(files.get(name) ?? Buffer.alloc(0)), name);
  const merged = importFolder(await exported(api, "style", "merged"));
  const wanted = mergeTrained(config, variant, initWeights(config, 3), weights);
  t.true(merged.ok && Buffer.from(toBytes(merged.weights)).equals(toBytes(wanted)));
  const model = await store.get("Model", "style");
  t.is(model?.base?.model, "letters");
  t.deepEqual(model?.tokenizer, (await store.get("Model", "letters"))?.tokenizer);

  // A second one on top of it belongs to the merged weights.
  t.true((await api.import(messages("twice", folder, "style"))).ok);
  const twice = importFolder(await exported(api, "twice", "merged"));
  const again = mergeTrained(config, variant, wanted, weights);
  t.true(twice.ok && Buffer.from(toBytes(twice.weights)).equals(toBytes(again)));
});

test("what is wrong with an adapter's import is said by name", async (t) => {
  const { api } = world();
  await api.import(messages("letters", shardedFolder()));
  const folder = foreignAdapter(initVariant(config, variantOf(LORA), 9));
  const refused = async (files: ReadonlyMap<string, Uint8Array>, base: string): Promise<string> => {
    const answer = await api.import(messages("style", files, base));
    t.false(answer.ok);
    return JSON.stringify(answer);
  };
  t.regex(await refused(folder, "nobody"), /no model is named \\"nobody/);
  t.regex(await refused(folder, ""), /header\.base.*name the stored model that the adapter is for/);
  t.regex(await refused(folder, "Letters!"), /header\.base.*must be the name of a stored model/);
  t.regex(await refused(shardedFolder(), "letters"), /must be adapter_config\.json or adapter_model\.safetensors/);
  const [fields = ["", new Uint8Array()]] = folder;
  t.regex(await refused(new Map([fields]), "letters"), /adapter_model\.safetensors.*is missing/);
  const ranked = bytesOf({ peft_type: "LORA", r: 3, target_modules: ["c_attn"] });
  t.regex(await refused(new Map(folder).set("adapter_config.json", ranked), "letters"), /must have the shape \[3,16\]/);
});

test("no more than four imports are under way at once, and one that ended makes room", async (t) => {
  const { api } = world();
  const folder = shardedFolder();
  const waiting: (() => void)[] = [];
  async function* slowly(name: string): AsyncGenerator<ImportRequest> {
    await new Promise<void>((go) => waiting.push(go));
    yield* messages(name, folder);
  }
  const started = ["a", "b", "c", "d"].map((name) => api.import(slowly(name)));
  const fifth = await api.import(messages("e", folder));
  t.regex(JSON.stringify(fifth), /RESOURCE_EXHAUSTED.*try again when one of them has ended/);
  for (const go of waiting) go();
  for (const answer of await Promise.all(started)) t.true(answer.ok);
  t.true((await api.import(messages("e", folder))).ok);
});

test("a model goes out as an ONNX file, in a sequence length that its context has", async (t) => {
  const { api } = world();
  await api.import(messages("letters", shardedFolder()));
  const files = await exported(api, "letters", "onnx");
  t.deepEqual([...files.keys()], ["config.json", "model.onnx"]);
  const { model } = exportInferenceGraph(config, initWeights(config, 3), { seqLen: 8 });
  t.true(Buffer.from(model).equals(files.get("model.onnx") ?? Buffer.alloc(0)));
  const long = await api.export({ name: "letters", form: "onnx", seqLen: 9 });
  t.regex(JSON.stringify(long), /seq_len.*must be from 1 to 8/);
});

const bytes = fc.uint8Array({ maxLength: 20 });
const named = fc.array(fc.tuple(fc.string(), bytes), { maxLength: 3 }).map((entries) => new Map(entries));

test("a stored folder reads back as it was; anything else is refused", (t) => {
  fc.assert(
    fc.property(
      fc.record({
        config: bytes,
        index: fc.option(bytes, { nil: undefined }),
        files: fc.array(fc.record({ name: fc.string(), header: bytes, kept: named }), { maxLength: 3 }),
      }),
      named,
      (template, companions) => {
        const plain = (folder: unknown): string =>
          JSON.stringify(folder, (_, value: unknown) =>
            value instanceof Map ? [...value] : value instanceof Uint8Array ? [...value] : value,
          );
        const encoded = encodeFolder({ template, companions });
        t.is(decodeFolder(encoded.subarray(0, -1)), undefined);
        return plain(decodeFolder(new Uint8Array(encoded))) === plain({ template, companions });
      },
    ),
  );
  t.is(decodeFolder(bytesOf({ magic: "other" })), undefined);
});
