import test from "ava";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { evaluationBatches, sampleBatch } from "#agent/data/batches.js";
import { openTokenizer } from "#agent/data/tokenizers.js";
import { createRng } from "#common/domain/rng.js";
import { mergeAdapter } from "#common/graph/adapter.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { initVariant } from "#common/graph/init.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";
import { expectedStory, loadStories, readStories, storiesAbsent, storiesTitle } from "./support/stories.js";

const stories = storiesAbsent ? test.skip : test;

stories(storiesTitle("the expected tokens of stories260K are its text"), (t) => {
  const opened = openTokenizer({ kind: "huggingface", chars: "", blob: undefined }, readStories("tokenizer.json"));
  if (!opened.ok) return t.fail(opened.problem);
  const expected = expectedStory();
  const text = new TextDecoder().decode(readStories("expected_greedy.txt")).trim();
  t.is(opened.tokenizer.decode(expected).trim(), text);
  const start = opened.tokenizer.encode("Once upon a time, there was a little girl named Lily.");
  t.deepEqual([...start], expected.slice(1, start.length + 1));
});

stories(storiesTitle("LoRA on tiny Shakespeare lowers the held-out loss, and the merged model has it"), async (t) => {
  const { config, weights } = loadStories();
  const opened = openTokenizer({ kind: "huggingface", chars: "", blob: undefined }, readStories("tokenizer.json"));
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
