import test from "ava";
import fc from "fast-check";
import { differentiate } from "#common/graph/autodiff.js";
import type { Value } from "#common/graph/builder.js";
import { type DecodedGraph, decodeModel } from "#common/graph/decoding.js";
import { interpret } from "#common/graph/interpreter/interpreter.js";
import type { Tensor } from "#common/graph/interpreter/tensor.js";
import { neg } from "#common/graph/ops.js";
import { emittedGraphs } from "./support/emitted.js";
import { differentiable, forwardOnly } from "./support/makers.js";
import { relativeDistance, runNative } from "./support/native.js";
import { type Garden, growGraph, growSegments, type Move } from "./support/random-graph.js";

/**
 * Graphs of random operators, shapes and operands: the native runtime must compute what the interpreter defines, and
 * derivatives must equal finite differences in float64. A failure prints its seed, and the smallest graph that fails.
 */

const RUNS = { forward: 400, gradient: 300 };
/** What the constants of derivatives, which a graph holds in float32, may be off by. */
const CONSTANTS = 1e-6;
const moves: fc.Arbitrary<Move[]> = fc.array(
  fc.record({ kind: fc.nat(9999), choices: fc.array(fc.nat(59), { minLength: 4, maxLength: 12, size: "max" }) }),
  { minLength: 1, maxLength: 10, size: "max" },
);
const allMakers = [...Object.values(differentiable), ...Object.values(forwardOnly)];
const smooth = Object.values(differentiable);

const namesIn = (graph: DecodedGraph): string[] =>
  graph.nodes.flatMap((node) => {
    const inner = [...node.attributes.values()].filter((value) => typeof value === "object" && "nodes" in value);
    const name = node.domain === "" ? node.op : `${node.domain}.${node.op}`;
    return [name, ...inner.flatMap((body) => namesIn(body))];
  });

const largest = (values: Iterable<Tensor>): number =>
  Math.max(...[...values].map(({ data }) => data.reduce((a, x) => Math.max(a, Math.abs(x)), 0)));

/** The feeds with every number changed by a millionth of it, up and down. */
const shaken = (feeds: ReadonlyMap<string, Tensor>): Map<string, Tensor> =>
  new Map(
    [...feeds].map(([name, value]) => {
      const data = value.data.map((x, i) => (value.type === "float32" ? x * (1 + (i % 2 === 0 ? 1e-6 : -1e-6)) : x));
      return [name, { ...value, data }];
    }),
  );

const met = new Set<string>();

test.serial("native results are those of the interpreter", async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), moves, fc.boolean(), async (seed, list, all) => {
      const garden = growGraph(seed, list, allMakers);
      const shown = new Set(all ? garden.values : garden.values.slice(-1));
      // A node of their own: an output takes its value's name, which a loop's body may not use.
      for (const value of shown) garden.g.output(`y_${value.name}`, neg(garden.g, value));
      const bytes = garden.g.encode();
      const graph = decodeModel(bytes);
      for (const name of namesIn(graph)) met.add(name);
      const expected = interpret(graph, garden.feeds);
      const size = largest([...expected.values(), ...garden.feeds.values()]);
      fc.pre(size < 1e6);
      const near = interpret(graph, shaken(garden.feeds));
      const got = await runNative(bytes, garden.feeds);
      for (const [name, value] of expected) {
        const depends = relativeDistance(near.get(name), value, size);
        const apart = relativeDistance(got.get(name), value, size);
        if (!(apart <= 1e-5 + 10 * depends))
          throw new Error(`${name}: ${apart}, ${depends} by rounding, in ${namesIn(graph).join(" ")}`);
      }
    }),
    { numRuns: RUNS.forward, includeErrorInReport: true },
  );
  t.pass();
});

test.serial("every operator of our graphs has been met in a random one", (t) => {
  const emitted = new Set(emittedGraphs().flatMap(({ bytes }) => namesIn(decodeModel(bytes))));
  const missing = [...emitted].filter((name) => !met.has(name));
  t.deepEqual(missing, [], "these operators need a maker in test/graph/support/makers.ts");
});

/** Of sum(c y) over some values y with fixed c: the graph of y, c, and the gradients of the garden's inputs. */
function gradientGraph(garden: Garden, ends: readonly Value[], recompute: boolean): DecodedGraph {
  const { g, inputs } = garden;
  const seeds = ends.map((value) => ({ value, gradient: garden.fixed(value.shape) }));
  const gradients = differentiate(g, seeds, [...inputs], recompute);
  seeds.forEach(({ value, gradient }, i) => {
    g.output(`y.${i}`, neg(g, value));
    g.output(`c.${i}`, neg(g, gradient));
  });
  gradients.forEach((gradient, i) => g.output(`d.${i}`, neg(g, gradient)));
  return decodeModel(g.encode());
}

const dot = (a: Float64Array, b: Float64Array): number => a.reduce((sum, x, i) => sum + x * (b[i] ?? NaN), 0);
const dataOf = (results: ReadonlyMap<string, Tensor>, name: string): Float64Array =>
  results.get(name)?.data ?? new Float64Array(0);

const objective = (results: ReadonlyMap<string, Tensor>): number =>
  [...results.keys()]
    .filter((name) => name.startsWith("y."))
    .reduce((sum, name) => sum + dot(dataOf(results, name), dataOf(results, name.replace("y.", "c."))), 0);

/** The objective's slope along a direction of one input by central differences with an error of order h^4, and that error. */
function slopeAlong(
  graph: DecodedGraph,
  feeds: ReadonlyMap<string, Tensor>,
  name: string,
  along: Float64Array,
): { slope: number; error: number } {
  const x = feeds.get(name);
  if (x === undefined) throw new Error(`no input ${name}`);
  const at = (h: number): number => {
    const moved = { ...x, data: x.data.map((value, i) => value + h * (along[i] ?? NaN)) };
    return objective(interpret(graph, new Map([...feeds, [name, moved]])));
  };
  const h = 2e-4;
  const half = at(h) - at(-h);
  const whole = at(2 * h) - at(-2 * h);
  const twice = at(4 * h) - at(-4 * h);
  const slope = (8 * half - whole) / (12 * h);
  return { slope, error: Math.abs(slope - (8 * whole - twice) / (24 * h)) };
}

test.serial("derivatives are those of finite differences, with blocks kept or computed again", (t) => {
  const shape = fc.record({ seed: fc.nat(), list: moves, other: fc.nat(), again: fc.boolean() });
  fc.assert(
    fc.property(shape, ({ seed, list, other, again }) => {
      const garden = again ? growSegments(seed, list, smooth, 3) : growGraph(seed, list, smooth);
      const ends = new Set([garden.values.at(-1), garden.values[other % garden.values.length]] as Value[]);
      const graph = gradientGraph(garden, [...ends], again);
      const results = interpret(graph, garden.feeds);
      const size = largest(results.values());
      // Where numbers grow without bounds, so do the higher derivatives that differences leave out.
      fc.pre(size < 1e3);
      garden.inputs.forEach(({ name }, i) => {
        const gradient = dataOf(results, `d.${i}`).map((x) => -x);
        const along = gradient.map((_, k) => Math.cos(1.7 * k + i));
        const { slope, error } = slopeAlong(graph, garden.feeds, name, along);
        const got = dot(gradient, along);
        if (!(Math.abs(got - slope) <= error + CONSTANTS * size * along.length)) {
          throw new Error(`${name}: ${got}, by differences ${slope} +- ${error}, in ${namesIn(graph).join(" ")}`);
        }
      });
    }),
    { numRuns: RUNS.gradient, includeErrorInReport: true },
  );
  t.pass();
});

/** How deep a mask must be is found out from the scores, but is a constant to the derivative. */
const DETACHED = ["ReduceMax", "ReduceMin", "Sub"];

test("every operator between weights and logits has its derivative tested", (t) => {
  const flowing = emittedGraphs()
    .filter(({ name }) => name.includes(": logits"))
    .flatMap(({ bytes }) => {
      const graph = decodeModel(bytes);
      const active = new Set(graph.inputs.map(({ name }) => name).filter((name) => name.startsWith("weights.")));
      const nodes = graph.nodes.filter(({ inputs, outputs }) => {
        const depends = inputs.some((name) => active.has(name));
        if (depends) for (const name of outputs) active.add(name);
        return depends;
      });
      return namesIn({ ...graph, nodes });
    });
  const missing = [...new Set(flowing)].filter((name) => !DETACHED.includes(name) && !(name in differentiable));
  t.deepEqual(missing, [], "these operators need a maker among the differentiable ones");
});
