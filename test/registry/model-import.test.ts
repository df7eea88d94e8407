import test from "ava";
import fc from "fast-check";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { parseModelConfig } from "#common/graph/config.js";
import { parameterLayout } from "#common/graph/layout.js";
import type { DeepPartial, FilePiece } from "#proto/shoal/v1/model_service.js";
import { ImportRequest } from "#proto/shoal/v1/model_service.js";
import { ImportReader, type ImportVerdict } from "#services/registry/model-import.js";

const CONFIG = { family: "gpt2", vocabSize: 260, contextLength: 8, layers: 1, heads: 2, width: 8 };
const parsed = parseModelConfig(CONFIG);
if (!parsed.ok) throw new Error("the test's own config cannot be built");
const WEIGHTS = Float32Array.from({ length: parameterLayout(parsed.config).total }, (_, i) => Math.sin(i));
const FILES = exportCheckpoint(parsed.config, WEIGHTS);
const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
const TOKENIZER = json({ model: { type: "BPE", vocab: { a: 0, b: 259 } }, added_tokens: [{ id: 5, content: "c" }] });

const header = (name = "tiny", tokenizerKind = ""): ImportRequest => ({
  part: { $case: "header", value: { name, tokenizerKind, base: "" } },
});
const piece = (fields: DeepPartial<FilePiece>): ImportRequest =>
  ImportRequest.fromPartial({ part: { $case: "piece", value: fields } });
const whole = (fileName: string, bytes: Uint8Array): ImportRequest =>
  piece({ fileName, fileSizeBytes: bytes.length, data: Buffer.from(bytes) });
const config = whole("config.json", FILES["config.json"]);
const weights = whole("model.safetensors", FILES["model.safetensors"]);
const withConfig = (changes: Record<string, unknown>): ImportRequest => {
  const old = JSON.parse(new TextDecoder().decode(FILES["config.json"])) as Record<string, unknown>;
  return whole("config.json", json({ ...old, ...changes }));
};

/** What an import comes to: the field of the first violation, or the model. */
function run(messages: ImportRequest[]): ImportVerdict {
  const reader = new ImportReader();
  for (const message of messages) {
    const violation = reader.accept(message);
    if (violation !== undefined) return { ok: false, violations: [violation] };
  }
  return reader.finish();
}
const fieldOf = (verdict: ImportVerdict): string => (verdict.ok ? "" : (verdict.violations[0]?.field ?? "none"));

const BAD: [string, ImportRequest[], string | RegExp][] = [
  ["nothing", [], "header"],
  ["an empty message", [{ part: undefined }], "part"],
  ["a piece before the header", [config], "header"],
  ["two headers", [header(), header()], "header"],
  ["a bad name", [header("No Name")], "header.name"],
  ["an unknown tokenizer kind", [header("tiny", "words")], "header.tokenizer_kind"],
  ["a foreign file", [header(), whole("../../passwd", json({}))], "piece.file_name"],
  ["no size", [header(), piece({ fileName: "config.json", fileSizeBytes: 0 })], "piece.file_size_bytes"],
  ["a negative size", [header(), piece({ fileName: "config.json", fileSizeBytes: -1 })], "piece.file_size_bytes"],
  ["a huge config", [header(), piece({ fileName: "config.json", fileSizeBytes: 2 ** 21 })], "piece.file_size_bytes"],
  [
    "huge weights",
    [header(), piece({ fileName: "model.safetensors", fileSizeBytes: 2 ** 42 })],
    "piece.file_size_bytes",
  ],
  ["a huge piece", [header(), whole("model.safetensors", new Uint8Array(2 ** 20 + 1))], "piece.data"],
  [
    "more than announced",
    [
      header(),
      config,
      piece({ fileName: "config.json", fileSizeBytes: FILES["config.json"].length, data: Buffer.from("x") }),
    ],
    "piece.data",
  ],
  [
    "a size that changes",
    [header(), config, piece({ fileName: "config.json", fileSizeBytes: 3 })],
    "piece.file_size_bytes",
  ],
  ["no files", [header()], "config.json"],
  ["no weights", [header(), config], "model.safetensors"],
  [
    "an unfinished file",
    [header(), weights, piece({ fileName: "config.json", fileSizeBytes: 9, data: Buffer.from("{}") })],
    "config.json",
  ],
  ["a config that is no JSON", [header(), whole("config.json", Buffer.from("{")), weights], "config.json"],
  ["a config of another family", [header(), withConfig({ model_type: "bert" }), weights], "model_type"],
  ["a config that cannot be built", [header(), withConfig({ n_head: 3 }), weights], /n_embd|n_head/],
  ["weights of another shape", [header(), withConfig({ n_layer: 2 }), weights], /^transformer\.h\.1/],
  [
    "weights that are garbage",
    [header(), config, whole("model.safetensors", new Uint8Array(100).fill(255))],
    "model.safetensors",
  ],
  [
    "truncated weights",
    [header(), config, whole("model.safetensors", FILES["model.safetensors"].subarray(0, 2000))],
    "model.safetensors",
  ],
  ["no tokenizer for huggingface", [header("tiny", "huggingface"), config, weights], "tokenizer.json"],
  [
    "a tokenizer for bytes",
    [header("tiny", "bytes"), config, weights, whole("tokenizer.json", TOKENIZER)],
    "tokenizer.json",
  ],
  [
    "a tokenizer that is no JSON",
    [header(), config, weights, whole("tokenizer.json", Buffer.from("x"))],
    "tokenizer.json",
  ],
  ["a tokenizer without a model", [header(), config, weights, whole("tokenizer.json", json({}))], "tokenizer.json"],
  [
    "an empty vocabulary",
    [header(), config, weights, whole("tokenizer.json", json({ model: { vocab: {} } }))],
    "tokenizer.json",
  ],
  [
    "a vocabulary too large",
    [header(), config, weights, whole("tokenizer.json", json({ model: { vocab: { a: 260 } } }))],
    "tokenizer.json",
  ],
  [
    "an added token too large",
    [
      header(),
      config,
      weights,
      whole("tokenizer.json", json({ model: { vocab: { a: 0 } }, added_tokens: [{ id: 999 }] })),
    ],
    "tokenizer.json",
  ],
];
for (const [what, messages, field] of BAD) {
  test(`an import of ${what} is refused by its field`, (t) => {
    const found = fieldOf(run(messages));
    t.true(typeof field === "string" ? found === field : field.test(found), found);
  });
}

test("an import in any order and any pieces gives the weights that went in", (t) => {
  const orders = fc.shuffledSubarray(["config.json", "model.safetensors"] as const, { minLength: 2 });
  fc.assert(
    fc.property(orders, fc.integer({ min: 300, max: 9000 }), (order, size) => {
      const messages = order.flatMap((fileName) => {
        const bytes = FILES[fileName];
        const parts: ImportRequest[] = [];
        for (let at = 0; at < bytes.length; at += size) {
          const data = Buffer.from(bytes.subarray(at, at + size));
          parts.push(piece({ fileName, fileSizeBytes: bytes.length, data }));
        }
        return parts;
      });
      const verdict = run([header(), ...messages]);
      return verdict.ok && Buffer.from(verdict.model.weights.buffer).equals(Buffer.from(WEIGHTS.buffer));
    }),
    { numRuns: 20 },
  );
  t.pass();
});

test("the tokenizer follows from the files, or from the header", (t) => {
  const kindOf = (verdict: ImportVerdict): string => (verdict.ok ? verdict.model.tokenizer.kind : fieldOf(verdict));
  t.is(kindOf(run([header(), config, weights])), "bytes");
  t.is(kindOf(run([header("tiny", "bytes"), config, weights])), "bytes");
  t.is(kindOf(run([header(), config, weights, whole("tokenizer.json", TOKENIZER)])), "huggingface");
});
