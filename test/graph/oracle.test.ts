import test from "ava";
import { createRng, type Rng } from "#common/domain/rng.js";
import { decodeModel, type DecodedValue } from "#common/graph/decoding.js";
import { interpret, undefinedOperators } from "#common/graph/interpreter/interpreter.js";
import { type Tensor, tensorOf } from "#common/graph/interpreter/tensor.js";
import { emittedGraphs, VOCABULARY } from "./support/emitted.js";
import { relativeDistance, runNative } from "./support/native.js";

/** Relative, of each output; measured are up to 1.3e-6. Rates and moments are such that gradients weigh in every one. */
const TOLERANCE = 5e-6;

/** A value for an input, by what its name says it is. Floats are such that float32 holds them. */
function feedFor({ name, type, shape }: DecodedValue, rng: Rng): Tensor {
  const width = shape.at(-1) ?? 1;
  const values: Record<string, (i: number) => number> = {
    tokens: () => rng.int(VOCABULARY),
    targets: () => (rng.uniform() < 0.2 ? -100 : rng.int(VOCABULARY)),
    segments: (i) => Math.floor((i % width) / 4),
    position: () => 2,
    filled: () => 5,
    lr: () => 0.5,
    step: () => 3,
    mu: () => 0.3,
    m: () => 0.01 * rng.normal(),
    v: () => 0.01 + rng.uniform(),
    scales: () => 0.01 * rng.uniform(),
    packed: () => rng.int(256),
    frozen: () => 0.4 * rng.normal(),
    weights: () => 0.4 * rng.normal(),
  };
  const value = values[name.split(".")[0] ?? name] ?? (() => 0.1 * rng.normal());
  return tensorOf(type, shape, (i) => Math.fround(value(i)));
}

for (const { name, bytes } of emittedGraphs()) {
  test(`${name}: the native runtime computes what the interpreter defines`, async (t) => {
    const graph = decodeModel(bytes);
    t.deepEqual(undefinedOperators(graph), [], "these operators need a definition in graph/interpreter");
    // Chunks of a decode graph hold one token or more.
    const chunk = graph.inputs.find((input) => input.name === "tokens")?.shape[1] ?? 1;
    const rng = createRng(1);
    const feeds = new Map(graph.inputs.map((input) => [input.name, feedFor(input, rng)]));
    const position = feeds.get("position");
    if (position !== undefined) position.data[0] = Math.min(2, chunk - 1);
    const expected = interpret(graph, feeds);
    const got = await runNative(bytes, feeds);
    t.deepEqual([...got.keys()], [...expected.keys()]);
    for (const [output, value] of expected) {
      const apart = relativeDistance(got.get(output), value);
      t.true(apart < TOLERANCE, `${output}: ${apart}`);
    }
  });
}
