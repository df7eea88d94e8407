import test from "ava";
import { classifyNodes } from "#agent/backend/node-classes.js";
import type { Workbench } from "#agent/backend/node-timing.js";
import { openWorkbench } from "#agent/backend/onnx.js";
import { openForecast, type StepForecast, type StepShape } from "#agent/step-timing.js";
import { flatBlocks } from "#common/graph/blocks.js";
import { GraphBuilder } from "#common/graph/builder.js";
import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
import { decodeInterface } from "#common/graph/decoding.js";
import { laneGraphs } from "#common/graph/lanes.js";
import { add, mul } from "#common/graph/ops.js";

function gpt2(width: number, layers: number, vocabSize: number): ModelConfig {
  const parsed = parseModelConfig({ family: "gpt2", vocabSize, contextLength: 16, layers, heads: 2, width });
  if (!parsed.ok) throw new Error("the test's own config cannot be built");
  return parsed.config;
}

const step: StepShape = { batch: 4, seqLen: 8, variant: {} };
const piecesOf = (graph: Uint8Array): number =>
  decodeInterface(graph).inputs.filter(({ name }) => name.startsWith("weights.")).length;

/** A bench on which a step takes a millisecond for each tensor that is trained, times how slow the machine is just now. */
function fakeBench(threads: number): { bench: Workbench; opened: Uint8Array[]; machine: { slowness: number } } {
  const machine = { slowness: 1 };
  const opened: Uint8Array[] = [];
  let nowMs = 0;
  const bench: Workbench = {
    ...openWorkbench({ threads }),
    nowMs: () => nowMs,
    hasLanes: () => Promise.resolve(true),
    train: (graph) => {
      opened.push(graph);
      return Promise.resolve({
        ...{ parameters: 0, frozenParameters: 0 },
        loadFrozen: () => undefined,
        load: () => undefined,
        setTerms: () => undefined,
        step: () => {
          nowMs += machine.slowness * piecesOf(graph);
          return Promise.resolve({ loss: 0, gradNorm: 0 });
        },
        state: () => ({ weights: new Float32Array(), m: new Float32Array(), v: new Float32Array() }),
        dispose: () => Promise.resolve(),
      });
    },
  };
  return { bench, opened, machine };
}

async function rounds(forecast: StepForecast, machine: { slowness: number }, pace: readonly number[]): Promise<number> {
  for (const slowness of pace) {
    machine.slowness = slowness;
    await forecast.round(100);
  }
  return forecast.stepMs();
}

/** Flat vectors' pieces of a GPT-2: its layers', and those around them. */
const tensors = (layers: number): number => 3 + 4 * layers;

for (const layers of [1, 2, 3, 6, 30]) {
  test(`a step of ${layers} layers is foretold from shallower ones, in a machine's usual state`, async (t) => {
    const { bench, opened, machine } = fakeBench(1);
    const forecast = await openForecast(bench, gpt2(8, layers, 16), step);
    const stepMs = await rounds(forecast, machine, [1, 1, 7, 1, 1]);
    t.true(Math.abs(stepMs / tensors(layers) - 1) < 1e-9, `${stepMs} ms for ${tensors(layers)}`);
    t.true(opened.every((graph) => piecesOf(graph) <= tensors(Math.max(1, Math.min(8, (layers + 1) * 0.7)))));
    await forecast.dispose();
  });
}

test("shallow models are run in lanes just if the whole one is", async (t) => {
  const isLaned = (graph: Uint8Array): boolean => laneGraphs(graph, 2) !== undefined;
  const small = fakeBench(2);
  await openForecast(small.bench, gpt2(8, 4, 16), step);
  t.deepEqual(small.opened.map(isLaned), [true, true]);
  // 36 million parameters in all, 10 million in a model of one layer.
  const large = fakeBench(2);
  await openForecast(large.bench, gpt2(512, 11, 12_000), step);
  t.deepEqual(large.opened.map(isLaned), [false, false]);
});

test("equal work in blocks is one class, whatever its values are called", (t) => {
  const g = new GraphBuilder();
  const inputs = ["a", "b"].map((name) => g.input(name, "float32", [2 ** 17]));
  const emit = (op: typeof add): void => {
    flatBlocks(g, inputs, (inner, [a, b]) => (a && b ? [op(inner, a, op(inner, a, b))] : [])).forEach((value) => {
      g.output(`out.${g.nodes.length}`, value);
    });
  };
  [add, add, mul, add].forEach(emit);
  const facts = new Map(
    g.nodes.flatMap(({ outputs }) => outputs.map(({ name, type, shape }) => [name, { type, shape }] as const)),
  );
  const { classes } = classifyNodes(g.encode(), facts, new Set(["a", "b"]));
  t.deepEqual(
    classes.filter(({ op }) => op === "Scan").map(({ count }) => count),
    [3, 1],
  );
});
