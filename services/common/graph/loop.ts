import type { GraphBuilder, Value } from "./builder.js";

/**
 * Repeats a graph: its memory is that of one run.
 * @param initial values that each run takes from the one before
 * @param body emits one run into `inner`, which may use values from outside; `run` is its number from 0, an int64 scalar.
 *   Returns the next values, of the same types and shapes.
 * @returns the values after the last run
 */
export function loop(
  g: GraphBuilder,
  count: number,
  initial: readonly Value[],
  body: (inner: GraphBuilder, run: Value, values: readonly Value[]) => readonly Value[],
): Value[] {
  const inner = g.inner();
  const run = inner.input(`run_${g.nodes.length}`, "int64", []);
  const go = inner.input(`go_${g.nodes.length}`, "bool", []);
  const values = initial.map(({ type, shape }, i) => inner.input(`value_${g.nodes.length}_${i}`, type, shape));
  const next = body(inner, run, values);
  // The condition never changes, but an input of a loop's body cannot be its output.
  const [goOn] = inner.node("Identity", [go], [go]);
  if (goOn === undefined) throw new Error("operator without output");
  inner.output(`go_on_${g.nodes.length}`, goOn);
  next.forEach((value, i) => inner.output(`next_${g.nodes.length}_${i}`, value));
  const inputs = [g.constant("int64", [], [count]), g.constant("bool", [], [1]), ...initial];
  return g.node("Loop", inputs, initial, { body: { kind: "graph", value: inner.model() } });
}
