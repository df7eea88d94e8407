import test from "ava";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { generateCached, generateTokens } from "#agent/backend/generate.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { evaluationBatches, sampleBatch } from "#agent/data/batches.js";
import { openTokenizer } from "#agent/data/tokenizers.js";
import { createRng } from "#common/domain/rng.js";
import { mergeAdapter } from "#common/graph/adapter.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { importFolder } from "#common/graph/folder.js";
import { initVariant } from "#common/graph/init.js";
import { buildDecodeGraph, buildLogitsGraph } from "#common/graph/logits.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";

const folder = resolve("../shared/models/stories260K");
const absent = !existsSync(folder) && process.env["CI"] === undefined;
const stories = absent ? test.skip : test;
const title = (what: string): string => `${what} (needs ../shared${absent ? ", which is absent here" : ""})`;

const read = (name: string): Uint8Array => readFileSync(join(folder, name));
const json = (name: string): unknown => JSON.parse(new TextDecoder().decode(read(name)));

function load(): Extract<ReturnType<typeof importFolder>, { ok: true }> {
  const imported = importFolder(new Map(["config.json", "model.safetensors"].map((name) => [name, read(name)])));
  if (!imported.ok) throw new Error(JSON.stringify(imported.violations));
  return imported;
}

const greedy = (count: number): Parameters<typeof generateTokens>[3] => ({ count, temperature: 0, topK: 0 });

async function collect(tokens: AsyncGenerator<number>): Promise<number[]> {
  const all: number[] = [];
  for await (const token of tokens) all.push(token);
  return all;
}

stories(title("200 greedy tokens of stories260K are the expected ones, and their text"), async (t) => {
  const { config, weights } = load();
  const expected = json("expected_greedy_ids.json") as number[];
  const backend = await openOnnxBackend({ threads: 1 });
  const session = await backend.logits(buildLogitsGraph(config, { seqLen: 256 }));
  const count = expected.length - 1;
  t.true(count >= 199);
  const got = await collect(generateTokens(session, weights, expected.slice(0, 1), greedy(count), createRng(0)));
  await session.dispose();
  t.deepEqual(got, expected.slice(1));
  const opened = openTokenizer(
    { kind: "huggingface", chars: "", blob: undefined },
    new Uint8Array(read("tokenizer.json")),
  );
  if (!opened.ok) return t.fail(opened.problem);
  const text = new TextDecoder().decode(read("expected_greedy.txt")).trim();
  t.is(opened.tokenizer.decode(expected).trim(), text);
  const start = opened.tokenizer.encode("Once upon a time, there was a little girl named Lily.");
  t.deepEqual([...start], expected.slice(1, start.length + 1));
});

for (const chunk of [1, 7]) {
  stories(title(`the cache changes nothing, prompts in chunks of ${chunk}`), async (t) => {
    const { config, weights } = load();
    const expected = json("expected_greedy_ids.json") as number[];
    const backend = await openOnnxBackend({ threads: 1 });
    const session = await backend.decode(buildDecodeGraph(config, { capacity: 256, chunk }));
    for (const prompt of [1, 20]) {
      const count = expected.length - prompt;
      const got = await collect(
        generateCached(session, weights, expected.slice(0, prompt), greedy(count), createRng(0)),
      );
      t.deepEqual(got, expected.slice(prompt));
    }
    await session.dispose();
  });
}

stories(title("LoRA on tiny Shakespeare lowers the held-out loss, and the merged model has it"), async (t) => {
  const { config, weights } = load();
  const opened = openTokenizer(
    { kind: "huggingface", chars: "", blob: undefined },
    new Uint8Array(read("tokenizer.json")),
  );
  if (!opened.ok) return t.fail(opened.problem);
  const text = readFileSync(resolve("../shared/data/tinyshakespeare/input.txt"), "utf8").slice(0, 60_000);
  const stream = opened.tokenizer.encode(text);
  const heldOut = stream.subarray(Math.floor(stream.length * 0.9));
  const train = stream.subarray(0, Math.floor(stream.length * 0.9));
  const shape = { batch: 4, seqLen: 64 };
  const lora = { rank: 8, alpha: 16, targets: ["all-linear"] };
  const backend = await openOnnxBackend({ threads: 1 });
  const held = async (variant: Variant, values: Float32Array, frozen?: Float32Array): Promise<number> => {
    const session = await backend.eval(buildEvalGraph(config, { ...shape, variant }));
    if (frozen !== undefined) session.loadFrozen(frozen);
    const sums = { loss: 0, tokens: 0 };
    for (const batch of evaluationBatches(heldOut, shape.batch, shape.seqLen, 8)) {
      const { lossSum, tokens } = await session.evaluate(values, batch);
      sums.loss += lossSum;
      sums.tokens += tokens;
    }
    await session.dispose();
    return sums.loss / sums.tokens;
  };
  const adam = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, clipNorm: 1 };
  const session = await backend.train(buildTrainGraph(config, { ...shape, ...adam, variant: { lora } }));
  session.loadFrozen(weights);
  const first = initVariant(config, { lora }, 1);
  const zeros = new Float32Array(first.length);
  session.load({ weights: first, m: zeros, v: zeros });
  const rng = createRng(2);
  for (let step = 1; step <= 60; step++)
    await session.step(sampleBatch(train, shape.batch, shape.seqLen, rng), 5e-3, step);
  const adapter = session.state().weights;
  await session.dispose();
  const [before, after] = [await held({}, weights), await held({ lora }, adapter, weights)];
  const merged = await held({}, mergeAdapter(config, weights, lora, adapter));
  t.log(`held-out loss ${before.toFixed(3)} before, ${after.toFixed(3)} after`);
  t.true(after < before - 0.5, `${before} ${after}`);
  t.true(Math.abs(merged - after) < 1e-4, `${merged} ${after}`);
});
