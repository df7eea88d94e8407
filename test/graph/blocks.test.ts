import test from "ava";
import { Tensor } from "onnxruntime-common";
import { openDirect } from "#agent/backend/c-api.js";
import { openInterpreterBackend } from "#agent/backend/interpreter.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import type { Backend, TrainState } from "#agent/backend/backend.js";
import { differentiate } from "#common/graph/autodiff.js";
import { GraphBuilder, type Value } from "#common/graph/builder.js";
import { decodeModel } from "#common/graph/decoding.js";
import { initWeights } from "#common/graph/init.js";
import { fastGelu } from "#common/graph/kernels.js";
import { full } from "#common/graph/ops.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { ModelConfig } from "#common/graph/families/table.js";

/** Wide enough that every chain of the backward pass and the optimizer is cut into blocks. */
const gpt2: ModelConfig = {
  ...{ family: "gpt2", vocabSize: 64, contextLength: 64, layers: 1 },
  ...{ heads: 4, width: 192, layerNormEps: 1e-5 },
} as const;
const shape = { batch: 4, seqLen: 64 };
const adam = { optimizer: "adamw", clipNorm: 1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1 } as const;
const graph = buildTrainGraph(gpt2, { ...shape, ...adam });

async function twoSteps(backend: Backend): Promise<{ losses: number[]; state: TrainState }> {
  const session = await backend.train(graph);
  const weights = initWeights(gpt2, 5);
  session.load({ weights, m: new Float32Array(weights.length), v: new Float32Array(weights.length) });
  const tokens = Int32Array.from({ length: 256 }, (_, i) => (i * i + 7 * i) % 64);
  const targets = Int32Array.from(tokens, (_, i) => (i % 9 === 0 ? -100 : (tokens[i + 1] ?? 0)));
  const losses: number[] = [];
  for (const step of [1, 2]) losses.push((await session.step({ tokens, targets }, 1e-3, step)).loss);
  const state = session.state();
  await session.dispose();
  return { losses, state };
}

test("a step in blocks is the step that the operators define", async (t) => {
  const scans = decodeModel(graph).nodes.filter(({ op }) => op === "Scan");
  // The GELU, three norms, the softmax, and the optimizer for each large tensor.
  t.true(scans.length >= 9, `${scans.length} chains in blocks`);
  const [native, exact] = [await openOnnxBackend({ threads: 2 }), await openInterpreterBackend({ nowMs: () => 0 })];
  const [ours, theirs] = [await twoSteps(native), await twoSteps(exact)];
  ours.losses.forEach((loss, i) => t.true(Math.abs(loss - (theirs.losses[i] ?? NaN)) < 1e-5));
  for (const key of ["weights", "m", "v"] as const) {
    const [a, b] = [ours.state[key], theirs.state[key]];
    const [error, size] = [
      a.reduce((sum, x, i) => sum + (x - (b[i] ?? NaN)) ** 2, 0),
      b.reduce((s, x) => s + x * x, 0),
    ];
    t.true(Math.sqrt(error / size) < 1e-4, `${key}: ${Math.sqrt(error / size)}`);
  }
});

test("a GELU's slope at zero is a half", async (t) => {
  const g = new GraphBuilder();
  const x = g.input("x", "float32", [5]);
  const y = fastGelu(g, x);
  const [slope] = differentiate(g, [{ value: y, gradient: full(g, [5], 1) }], [x]);
  g.output("slope", slope as Value);
  const points = Float32Array.of(0, -0, 1e-25, -1e-20, 1);
  const session = openDirect(g.encode(), { threads: 1, config: {} }, Tensor);
  const slopes = (await session.run({ x: new Tensor("float32", points, [5]) }))["slope"]?.data as Float32Array;
  const expected = [0.5, 0.5, 0.5, 0.5, 1.082964];
  expected.forEach((value, i) => t.true(Math.abs((slopes[i] ?? NaN) - value) < 1e-5, slopes.join()));
  await session.release();
});
