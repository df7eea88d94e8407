import { encodeModel } from "./encoding.js";
import type { Attribute, ElementType, Initializer, Node, Shape, Value } from "./model.js";

export type { Attribute, ElementType, Initializer, Node, Shape, Value } from "./model.js";
export { sizeOf } from "./model.js";

/**
 * Collects the nodes of one ONNX graph in the order they are made, which is a topological order.
 * Names are counters, so that building the same graph twice gives the same bytes.
 */
export class GraphBuilder {
  readonly nodes: Node[] = [];
  /** Names of values through which no gradient flows. */
  readonly detached = new Set<string>();
  readonly #inputs: Value[] = [];
  readonly #outputs: { value: Value; name: string }[] = [];
  readonly #initializers: Initializer[] = [];
  readonly #constants = new Map<string, Value>();
  #counter = 0;

  /** Declares a graph input. */
  input(name: string, type: ElementType, shape: Shape): Value {
    const value = { name, type, shape };
    this.#inputs.push(value);
    return value;
  }

  /** A small constant stored in the graph; equal constants are stored once. */
  constant(type: ElementType, shape: Shape, data: readonly number[]): Value {
    const key = `${type}:${shape.join("x")}:${data.join(",")}`;
    const known = this.#constants.get(key);
    if (known !== undefined) return known;
    const value = { name: `c${this.#constants.size}`, type, shape };
    this.#initializers.push({ ...value, data });
    this.#constants.set(key, value);
    return value;
  }

  /** A float32 scalar constant. */
  scalar(x: number): Value {
    return this.constant("float32", [], [x]);
  }

  /** A one-dimensional int64 constant, as axes and shapes are given to operators. */
  ints(values: readonly number[]): Value {
    return this.constant("int64", [values.length], values);
  }

  /** Adds a node; `results` are type and shape of each output. */
  node(
    op: string,
    inputs: readonly Value[],
    results: readonly { type: ElementType; shape: Shape }[],
    attributes: Readonly<Record<string, Attribute>> = {},
    domain = "",
  ): Value[] {
    const id = this.#counter++;
    const outputs = results.map(({ type, shape }, i) => ({ name: `${op}_${id}_${i}`, type, shape }));
    this.nodes.push({ op, domain, inputs, outputs, attributes });
    return outputs;
  }

  /** Marks a value as a constant of the backward pass. */
  detach(value: Value): Value {
    this.detached.add(value.name);
    return value;
  }

  /** Makes a computed value a graph output called `name`. */
  output(name: string, value: Value): void {
    this.#outputs.push({ value, name });
  }

  /** The finished graph as the bytes of an ONNX ModelProto; nodes no output depends on are left out. */
  encode(): Uint8Array {
    const needed = new Set(this.#outputs.map((output) => output.value.name));
    const kept: Node[] = [];
    for (const node of [...this.nodes].reverse()) {
      if (!node.outputs.some((output) => needed.has(output.name))) continue;
      for (const input of node.inputs) needed.add(input.name);
      kept.push(node);
    }
    // The value itself takes the output's name: an Identity node would cost a copy.
    const names = new Map(this.#outputs.map((output) => [output.value.name, output.name]));
    const rename = (value: Value): Value => ({ ...value, name: names.get(value.name) ?? value.name });
    return encodeModel({
      nodes: kept
        .reverse()
        .map((node) => ({ ...node, inputs: node.inputs.map(rename), outputs: node.outputs.map(rename) })),
      initializers: this.#initializers.filter((initializer) => needed.has(initializer.name)),
      inputs: this.#inputs,
      outputs: this.#outputs.map((output) => rename(output.value)),
    });
  }
}
