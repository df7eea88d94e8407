import test from "ava";
import { execFile } from "node:child_process";
import { execPath } from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { openTokenizer } from "#agent/data/tokenizers.js";
import { judgePattern } from "#agent/data/tokenizer-file.js";
import { exportCheckpoint, importCheckpoint } from "#common/graph/checkpoint.js";
import type { ModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { readJson } from "#common/graph/json.js";
import { parameterLayout } from "#common/graph/layout.js";
import { readSafetensors } from "#common/graph/safetensors.js";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { safetensors, wholeTokenizer } from "./support/hostile-files.js";
import { largeFiles, type LargeRun } from "./support/hostile-large.js";
import type { HostileRun } from "./support/hostile-main.js";

const run = promisify(execFile);
const MIB = 2 ** 20;

/** Runs a file of support/ in a process whose heap is small: what takes too much kills it. */
async function inSmallProcess<T>(file: string, heapMb: number, ...parameters: string[]): Promise<T> {
  const path = fileURLToPath(new URL(`support/${file}`, import.meta.url));
  const { stdout } = await run(execPath, [`--max-old-space-size=${heapMb}`, path, ...parameters]);
  return JSON.parse(stdout) as T;
}

// Seeds count from 0: `node dist/test/graph/support/hostile-main.js 10000 500` is the same run.
test("10 000 damaged folders and 500 tokenizers are refused, or whole after all; none crashes or swells", async (t) => {
  const result = await inSmallProcess<HostileRun>("hostile-main.js", 64, "10000", "500");
  t.deepEqual(result.failures, []);
  t.true(result.folders.refused > 8000 && result.folders.accepted > 500, JSON.stringify(result.folders));
  t.true(result.tokenizers.refused > 300 && result.tokenizers.accepted > 50, JSON.stringify(result.tokenizers));
  t.true(result.grownBytes < 128 * MIB, `${result.grownBytes} bytes more`);
});

for (const name of Object.keys(largeFiles)) {
  test(`memory: ${name} takes a small multiple of its bytes`, async (t) => {
    const { ok, report, fileBytes, grownBytes } = await inSmallProcess<LargeRun>("hostile-large.js", 1024, name);
    t.log(`${(fileBytes / MIB).toFixed(1)} MiB, ${(grownBytes / MIB).toFixed(1)} MiB more: ${report.slice(0, 80)}`);
    t.is(ok, ["half precision throughout", "a vocabulary of small ids"].includes(name), report);
    t.true(grownBytes < 8 * fileBytes + 32 * MIB, `${grownBytes} for ${fileBytes}`);
  });
}

const tiny: ModelConfig = {
  ...{ family: "gpt2", vocabSize: 11, contextLength: 8, layers: 2, heads: 2, width: 8 },
  layerNormEps: 1e-5,
};

test("a value that is not finite is named by file, tensor and place", (t) => {
  for (const value of [NaN, Infinity, -Infinity]) {
    const weights = initWeights(tiny, 1);
    const place = parameterLayout(tiny).tensors[3];
    if (place === undefined) return t.fail("no tensor");
    weights[place.offset + 5] = value;
    const files = exportCheckpoint(tiny, weights);
    const imported = importCheckpoint(files["config.json"], files["model.safetensors"]);
    t.deepEqual(imported.ok ? [] : imported.violations, [
      {
        field: place.name,
        value,
        description: `holds a value that is not finite (${value}), at position 5, in model.safetensors`,
      },
    ]);
  }
});

test("what is wrong is told at a length that a person can read", (t) => {
  const config = JSON.stringify({ model_type: "gpt2", n_embd: "x".repeat(1e6), ["y".repeat(1e6)]: [[1]] });
  const refused = importCheckpoint(config, new Uint8Array());
  t.true(!refused.ok && JSON.stringify(refused.violations).length < 5000);
  const many = Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`unknown_${i}`, 1]));
  const listed = importCheckpoint(JSON.stringify({ model_type: "gpt2", ...many }), new Uint8Array());
  t.is(listed.ok ? 0 : listed.violations.length, 100);
});

for (const dtype of [{ toString: 1 }, [["F32"]], null, "F32".repeat(1e5)]) {
  test(`a dtype that is ${JSON.stringify(dtype).slice(0, 20)} is refused`, (t) => {
    const read = readSafetensors(safetensors({ a: { dtype, shape: [0], data_offsets: [0, 0] } }, new Uint8Array()));
    t.true(!read.ok && read.reason.startsWith("tensor a: ") && read.reason.length < 300);
  });
}

test("JSON is read by its structure, whatever its texts hold", (t) => {
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
  const brackets = { a: `${"[".repeat(1000)}"\\`, b: [{ c: 1 }] };
  t.deepEqual(readJson(bytes(JSON.stringify(brackets)), MIB), { ok: true, value: brackets });
  const depth = (levels: number): boolean => readJson(bytes("[".repeat(levels) + "]".repeat(levels)), MIB).ok;
  t.deepEqual([depth(64), depth(65)], [true, false]);
  t.false(readJson(bytes("[1]"), 2).ok);
  t.false(readJson(new Uint8Array([0x22, 0xff, 0x22]), MIB).ok);
});

const spec = TokenizerSpec.fromPartial({ kind: "huggingface" });
type Tokenizer = ReturnType<typeof wholeTokenizer>;
const problemOf = (change: (json: Tokenizer) => unknown): string => {
  const json = wholeTokenizer();
  const changed = change(json) ?? json;
  const opened = openTokenizer(spec, new TextEncoder().encode(JSON.stringify(changed)));
  return opened.ok ? "" : opened.problem;
};
const withModel = (fields: object): ((json: Tokenizer) => unknown) => {
  return (json) => ({ ...json, model: { ...(json["model"] as object), ...fields } });
};
const withNormalizers = (...normalizers: object[]): ((json: Tokenizer) => unknown) => {
  return (json) => ({ ...json, normalizer: { type: "Sequence", normalizers } });
};
const replace = (pattern: object, content: string): object => ({ type: "Replace", pattern, content });
const split = (Regex: string): object => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false });
const nested = (levels: number): object =>
  levels === 0 ? { type: "Lowercase" } : { type: "Sequence", normalizers: [nested(levels - 1)] };

const hostile: [string, (json: Tokenizer) => unknown, RegExp][] = [
  ["is a list", () => [], /not a JSON object/],
  ["has no model", () => ({}), /model is missing/],
  ["has no vocabulary", withModel({ vocab: 3 }), /model\.vocab is missing/],
  ["has a huge id", withModel({ vocab: { a: 2 ** 31 } }), /the id of "a"/],
  ["has half an id", withModel({ vocab: { a: 0.5 } }), /the id of "a"/],
  ["has a list of ids", withModel({ type: "Unigram", vocab: [["a"]] }), /model\.vocab\[0\]/],
  ["has an endless token", withModel({ vocab: { ["a".repeat(5000)]: 0 } }), /a token of 5000 characters/],
  ["has merges that are none", withModel({ merges: "h e" }), /model\.merges is not a list/],
  ["has a merge of three", withModel({ merges: ["h e l"] }), /model\.merges\[0\] is not a pair/],
  ["merges what is not there", withModel({ merges: ["h x"] }), /model\.merges\[0\]: "x" is not in the vocabulary/],
  ["merges into what is not there", withModel({ merges: ["e h"] }), /"eh" is not in the vocabulary/],
  ["merges in a circle", withModel({ merges: ["h e", "he h"] }), /"heh" is not in the vocabulary/],
  ["mixes forms of merges", withModel({ merges: ["h e", ["l", "l"]] }), /merges\[1\] is not written as the first/],
  ["has an object's own method as merge", withModel({ merges: ["constructor h"] }), /"constructor" is not in/],
  [
    "has an added token without text",
    (json) => ({ ...json, added_tokens: [{ id: 1, content: "" }] }),
    /added_tokens\[0\]/,
  ],
  [
    "has an added token of a huge id",
    (json) => ({ ...json, added_tokens: [{ id: 1e12, content: "x" }] }),
    /added_tokens/,
  ],
  ["is nested", withNormalizers(nested(20)), /normalizer is nested too deep/],
  [
    "writes much for little",
    withNormalizers(replace({ String: "a" }, "b".repeat(1000))),
    /content has 1000 characters/,
  ],
  [
    "doubles texts again and again",
    withNormalizers(...Array.from({ length: 30 }, () => replace({ String: "a" }, "aa"))),
    /times longer/,
  ],
  ["replaces nothing", withNormalizers(replace({ String: "" }, "a")), /neither a Regex nor a String/],
  ["searches for ever", withNormalizers(replace({ Regex: "(a+)+$" }, "")), /can itself be matched in many ways/],
  ["splits for ever", (json) => ({ ...json, pre_tokenizer: split("^(\\w|\\d)*$") }), /pre_tokenizer\.pattern repeats/],
  ["is of an unknown kind", (json) => ({ ...json, pre_tokenizer: { type: "Magic" } }), /Unknown PreTokenizer/],
];
for (const [what, change, reason] of hostile) {
  test(`a tokenizer.json that ${what} is refused`, (t) => {
    t.regex(problemOf(change), reason);
  });
}

test("tokens named as an object's own properties are tokens like others", (t) => {
  const vocab = JSON.parse('{"__proto__": 0, "constructor": 1, "toString": 2}') as object;
  t.is(problemOf(withModel({ vocab, merges: [] })), "");
});

test("patterns of published tokenizers pass, those that can take exponential time do not", (t) => {
  const published = [
    // GPT-2; GPT-4 and Llama 3; Qwen; GPT-4o; DeepSeek.
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "\\d(?=(?:\\d{3})+\\b)",
    "[]a]+",
    // BLOOM; Kimi.
    " ?[^(\\s|[.,!?…。，、।۔،])]+",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{M}&&[^\\p{Han}]]*[\\p{Ll}\\p{M}&&[^\\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    "\\p{Script=Han}+|\\u{3042}{2}",
    "colou?r|(?:https?://)?(?:www\\.)?\\w+",
  ];
  for (const pattern of published) t.is(judgePattern(pattern), undefined, pattern);
  const bad = [
    "(a+)+",
    "(a|a)*",
    "((a?b*))*",
    "(?:a{1,9}){1,99}",
    "(.*a){20}",
    "(a)\\1+",
    "(?<x>a)\\k<x>",
    "\\s*\\s*\\s*\\s*x",
    "a{99999}",
    "(?:aa?)+b",
    "(?:a?a)+!",
    "(?:a?){40}b",
    `${"a?".repeat(24)}b`,
    `${"(?:a|a)".repeat(24)}b`,
    `${"a{1,8}".repeat(12)}b`,
    "(?:a?a?a?a?a?){8}b",
    "(?:a+a){8}b",
    "(?:a*a*a*|x)(?:a*|x)b",
    "(?:\\u{61}+)+b",
  ];
  for (const pattern of bad) t.is(typeof judgePattern(pattern), "string", pattern);
});
