import test from "ava";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { laneGraphs } from "#common/graph/lanes.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { roughWeights, tinyBatch, tinyModels, trainingCases } from "../backend/support/training-cases.js";
import { backendAgreement, backendConformance } from "./backend.js";

const open = (threads: number) => (): ReturnType<typeof openOnnxBackend> => openOnnxBackend({ threads });

backendConformance(test, "lanes", open(2), { relative: 1e-5, slope: 4e-3 });
const whole = (): ReturnType<typeof openOnnxBackend> => openOnnxBackend({ threads: 1, binding: true });
for (const [lanes, threads] of [
  ["one lane", 1],
  ["two lanes", 2],
] as const) {
  backendAgreement(test, `${lanes} and the whole step`, [open(threads), whole], { losses: 1e-5, weights: 1e-4 });
}

const shape = { batch: 4, seqLen: 8 };
const adamw = { optimizer: "adamw", beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1, clipNorm: 0.5 } as const;

test("training runs in lanes, in as many as divide its rows", (t) => {
  const cases = trainingCases();
  t.true(cases.filter(({ graph }) => laneGraphs(graph, 2) !== undefined).length >= cases.length - 1);
  const graph = buildTrainGraph(tinyModels.gpt2, { ...shape, ...adamw });
  const lanes = (threads: number): number | undefined => laneGraphs(graph, threads)?.lanes;
  t.deepEqual([1, 2, 3, 4, 8].map(lanes), [1, 2, 2, 2, 2]);
});

test("three lanes, and lanes of several threads, take the step of the whole", async (t) => {
  const options = { ...shape, batch: 6, ...adamw };
  const graph = buildTrainGraph(tinyModels.qwen3, options);
  t.is(laneGraphs(graph, 3)?.lanes, 3);
  const losses = [];
  for (const threads of [1, 3, 5]) {
    const session = await (await open(threads)()).train(graph);
    const zeros = new Float32Array(session.parameters);
    session.load({ weights: roughWeights(tinyModels.qwen3, 2), m: zeros, v: zeros });
    await session.step(tinyBatch(4, options), 0.01, 1);
    losses.push((await session.step(tinyBatch(5, options), 0.01, 2)).loss);
    await session.dispose();
  }
  const [whole, three, five] = losses as [number, number, number];
  t.true(Math.abs(whole - three) < 1e-5 && Math.abs(whole - five) < 1e-5, losses.join());
});

test("a graph that says another thing than it does is run as it is", (t) => {
  const graph = buildTrainGraph(tinyModels.gpt2, { ...shape, ...adamw });
  const text = new TextDecoder("latin1").decode(graph).replace('"clipNorm":0.5', '"clipNorm":9.5');
  const lying = Uint8Array.from(text, (character) => character.charCodeAt(0));
  t.is(lying.length, graph.length);
  t.notDeepEqual(lying, graph);
  t.is(laneGraphs(lying, 2), undefined);
});

test("a batch that cannot be divided stays in one lane", (t) => {
  const graph = (batch: number, accumulate = 1): Uint8Array =>
    buildTrainGraph(tinyModels.gpt2, { ...shape, batch, accumulate, ...adamw });
  const lanes = (...shape: [number, number?]): number | undefined => laneGraphs(graph(...shape), 2)?.lanes;
  t.deepEqual([lanes(1), lanes(3), lanes(2, 2), lanes(4, 2)], [1, 1, 1, 2]);
});

test("rows that are masked in one lane alone count as in the whole step", async (t) => {
  const graph = buildTrainGraph(tinyModels.llama, { ...shape, ...adamw });
  const batch = tinyBatch(3);
  const targets = batch.targets.map((target, i) => (i < 16 ? -100 : target));
  const results = [];
  for (const threads of [1, 2]) {
    const session = await (await open(threads)()).train(graph);
    const zeros = new Float32Array(session.parameters);
    session.load({ weights: roughWeights(tinyModels.llama, 2), m: zeros, v: zeros });
    results.push(await session.step({ ...batch, targets }, 0.01, 1));
    results.push(await session.step({ ...batch, targets: targets.map(() => -100) }, 0.01, 2));
    await session.dispose();
  }
  const [whole, nothing, lanes, alsoNothing] = results;
  t.true(Math.abs((whole?.loss ?? NaN) - (lanes?.loss ?? NaN)) < 1e-6);
  t.true(Math.abs((whole?.gradNorm ?? NaN) / (lanes?.gradNorm ?? NaN) - 1) < 1e-5);
  t.deepEqual(
    [nothing, alsoNothing],
    [
      { loss: 0, gradNorm: 0 },
      { loss: 0, gradNorm: 0 },
    ],
  );
});
