import test from "ava";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { importCheckpoint } from "#common/graph/checkpoint.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { parameterLayout } from "#common/graph/layout.js";
import { buildLogitsGraph } from "#common/graph/logits.js";
import { parseSafetensors, type NamedTensor } from "#common/graph/safetensors.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { ModelConfig } from "#common/graph/config.js";

const folder = resolve("../shared/fixtures/parity/gpt2-tiny");
const absent = !existsSync(folder) && process.env["CI"] === undefined;
const parity = absent ? test.skip : test;
const title = (what: string): string =>
  `${what} equal PyTorch float64 (needs ../shared${absent ? ", which is absent here" : ""})`;

interface Hyperparameters {
  lr: number;
  beta1: number;
  beta2: number;
  eps: number;
  weight_decay: number;
  clip_global_norm: number;
}

interface Fixture {
  config: ModelConfig;
  weights: Float32Array;
  tokens: Int32Array;
  targets: Int32Array;
  shape: { batch: number; seqLen: number };
  train: Hyperparameters;
  expected: ReadonlyMap<string, NamedTensor>;
  losses: number[];
  gradNorms: number[];
  lossAfter10: number;
}

function json(name: string): unknown {
  return JSON.parse(readFileSync(join(folder, name), "utf8")) as unknown;
}

function loadFixture(): Fixture {
  const checkpoint = importCheckpoint(
    readFileSync(join(folder, "config.json")),
    readFileSync(join(folder, "model.safetensors")),
  );
  const expected = parseSafetensors(readFileSync(join(folder, "expected.safetensors")));
  if (!checkpoint.ok || !expected.ok) throw new Error("the fixture could not be read");
  const batch = json("batch.json") as { tokens: number[][]; targets: number[][]; train: Hyperparameters };
  const figures = json("expected.json") as { losses: number[]; grad_norms: number[]; loss_after_10: number };
  return {
    config: checkpoint.config,
    weights: checkpoint.weights,
    tokens: Int32Array.from(batch.tokens.flat()),
    targets: Int32Array.from(batch.targets.flat()),
    shape: { batch: batch.tokens.length, seqLen: batch.tokens[0]?.length ?? 0 },
    train: batch.train,
    expected: expected.tensors,
    losses: figures.losses,
    gradNorms: figures.grad_norms,
    lossAfter10: figures.loss_after_10,
  };
}

/** Joins expected tensors, such as `grad.*`, in the order of the flat vector. */
function flatten(fixture: Fixture, prefix: string): Float32Array {
  const layout = parameterLayout(fixture.config);
  const flat = new Float32Array(layout.total);
  for (const place of layout.tensors) {
    const tensor = fixture.expected.get(`${prefix}${place.name}`);
    if (tensor === undefined) throw new Error(`no ${prefix}${place.name} in the fixture`);
    flat.set(tensor.data, place.offset);
  }
  return flat;
}

function relativeError(got: Float32Array, expected: Float32Array): number {
  const difference = Math.hypot(...got.map((x, i) => x - (expected[i] ?? NaN)));
  return difference / Math.hypot(...expected);
}

const trainOptions = ({ shape, train }: Fixture): Parameters<typeof buildTrainGraph>[1] => ({
  ...shape,
  beta1: train.beta1,
  beta2: train.beta2,
  eps: train.eps,
  weightDecay: train.weight_decay,
  clipNorm: train.clip_global_norm,
});

parity(title("logits"), async (t) => {
  const fixture = loadFixture();
  const { batch, seqLen } = fixture.shape;
  const backend = await openOnnxBackend({ threads: 1 });
  const session = await backend.logits(buildLogitsGraph(fixture.config, { seqLen }));
  const got: number[] = [];
  for (let row = 0; row < batch; row++) {
    for (let end = 1; end <= seqLen; end++) {
      const tokens = fixture.tokens.subarray(row * seqLen, row * seqLen + end);
      got.push(...(await session.logits(fixture.weights, tokens)));
    }
  }
  await session.dispose();
  const error = relativeError(Float32Array.from(got), fixture.expected.get("logits")?.data ?? new Float32Array());
  t.log(`relative L2 error ${error.toExponential(2)}`);
  t.true(error < 1e-5);
});

parity(title("gradients"), async (t) => {
  const fixture = loadFixture();
  const backend = await openOnnxBackend({ threads: 1 });
  // Without momentum and clipping, AdamW's first moment after a step is the gradient itself.
  const options = { ...trainOptions(fixture), beta1: 0, clipNorm: 1e30 };
  const session = await backend.train(buildTrainGraph(fixture.config, options));
  const zeros = new Float32Array(session.parameters);
  session.load({ weights: fixture.weights, m: zeros, v: zeros });
  await session.step({ tokens: fixture.tokens, targets: fixture.targets }, 0.001, 1);
  const gradient = session.state().m;
  await session.dispose();
  const expected = flatten(fixture, "grad.");
  const error = relativeError(gradient, expected);
  t.log(`relative L2 error ${error.toExponential(2)}`);
  t.true(error < 1e-5);
  for (const place of parameterLayout(fixture.config).tensors) {
    const part = (flat: Float32Array): Float32Array => flat.subarray(place.offset, place.offset + place.size);
    t.true(relativeError(part(gradient), part(expected)) < 1e-5, place.name);
  }
});

parity(title("ten losses, gradient norms and the weights after 1 and 10 steps"), async (t) => {
  const fixture = loadFixture();
  const { tokens, targets, train } = fixture;
  const backend = await openOnnxBackend({ threads: 2 });
  const session = await backend.train(buildTrainGraph(fixture.config, trainOptions(fixture)));
  const zeros = new Float32Array(session.parameters);
  session.load({ weights: fixture.weights, m: zeros, v: zeros });
  for (const [i, expectedLoss] of fixture.losses.entries()) {
    const { loss, gradNorm } = await session.step({ tokens, targets }, train.lr, i + 1);
    t.true(Math.abs(loss - expectedLoss) < 1e-5, `loss ${i + 1}: ${loss} against ${expectedLoss}`);
    t.true(Math.abs(gradNorm - (fixture.gradNorms[i] ?? NaN)) < 1e-4, `norm ${i + 1}: ${gradNorm}`);
    if (i !== 0) continue;
    const afterOne = relativeError(session.state().weights, flatten(fixture, "step1."));
    t.true(afterOne < 1e-4, `after 1: ${afterOne}`);
  }
  const { weights } = session.state();
  await session.dispose();
  const error = relativeError(weights, flatten(fixture, "step10."));
  t.log(`relative L2 error of the weights after 10 steps ${error.toExponential(2)}`);
  t.true(error < 1e-4);
  const evaluation = await backend.eval(buildEvalGraph(fixture.config, fixture.shape));
  const { lossSum, tokens: count } = await evaluation.evaluate(weights, { tokens, targets });
  await evaluation.dispose();
  t.is(count, targets.filter((target) => target !== -100).length);
  t.true(Math.abs(lossSum / count - fixture.lossAfter10) < 1e-5);
});
