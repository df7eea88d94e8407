import type { Attribute, ElementType, Initializer, Model, Node, Shape, Value } from "./model.js";
import { encodeModel } from "./encoding.js";

export { sizeOf } from "./model.js";
export type { Attribute, ElementType, Initializer, Model, Node, Shape, Value } from "./model.js";

/** Nodes from index `from` up to, not including, `to`, between which nothing but `input` comes from earlier segments. */
export interface Segment {
  readonly input: Value;
  readonly from: number;
  readonly to: number;
}

/** Names that a graph uses and does not define: those of the graph around it. */
function freeNames({ nodes, initializers, inputs, outputs }: Model): string[] {
  const own = new Set([...initializers, ...inputs, ...nodes.flatMap((node) => node.outputs)].map(({ name }) => name));
  const used = [...nodes.flatMap((node) => node.inputs), ...outputs].map(({ name }) => name);
  return used.filter((name) => !own.has(name));
}

/**
 * Collects the nodes of one ONNX graph in the order they are made, which is a topological order.
 * Names are counters, so that building the same graph twice gives the same bytes.
 */
export class GraphBuilder {
  readonly nodes: Node[] = [];
  /** Names of values through which no gradient flows. */
  readonly detached = new Set<string>();
  /** Stretches of nodes that can be computed again from one value and what lies outside of them. */
  readonly segments: Segment[] = [];
  readonly #inputs: Value[] = [];
  readonly #outputs: { value: Value; name: string }[] = [];
  readonly #initializers: Initializer[] = [];
  readonly #constants = new Map<string, Value>();
  readonly #prefix: string;
  #counter = 0;

  /** Whether one thread alone runs the graph, so that operators may be used that add up without a lock. */
  readonly serial: boolean;

  /** @param prefix of all names; a graph inside another must not use that one's */
  constructor({ prefix = "", serial = false }: { prefix?: string; serial?: boolean } = {}) {
    this.#prefix = prefix;
    this.serial = serial;
  }

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
    const value = { name: `${this.#prefix}c${this.#constants.size}`, type, shape };
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
    const outputs = results.map(({ type, shape }, i) => ({ name: `${this.#prefix}${op}_${id}_${i}`, type, shape }));
    this.nodes.push({ op, domain, inputs, outputs, attributes });
    return outputs;
  }

  /** The node that computes a value; undefined for inputs, constants and values from outside. */
  producer(value: Value): Node | undefined {
    return this.nodes.findLast((node) => node.outputs.some((output) => output.name === value.name));
  }

  /** Marks a value as a constant of the backward pass. */
  detach(value: Value): Value {
    this.detached.add(value.name);
    return value;
  }

  /** Emits a block of a model, which a backward pass may compute again instead of keeping all its values. */
  segment(input: Value, body: (input: Value) => Value): Value {
    const from = this.nodes.length;
    const output = body(input);
    this.segments.push({ input, from, to: this.nodes.length });
    return output;
  }

  /** A copy of a node, of which some inputs have been exchanged. */
  again({ op, domain, inputs, outputs, attributes }: Node, exchanged: ReadonlyMap<string, Value>): Node {
    const others = inputs.map((input) => exchanged.get(input.name) ?? input);
    const made = this.node(op, others, outputs, attributes, domain);
    return { op, domain, inputs: others, outputs: made, attributes };
  }

  /** Makes a computed value a graph output called `name`. */
  output(name: string, value: Value): void {
    this.#outputs.push({ value, name });
  }

  /** A builder for a graph inside this one, which may use this one's values. */
  inner(): GraphBuilder {
    return new GraphBuilder({ prefix: `${this.#prefix}${this.#counter++}/`, serial: this.serial });
  }

  /** The finished graph; nodes that no output depends on are left out. */
  model(): Model {
    const names = new Map(this.#outputs.map((output) => [output.value.name, output.name]));
    const needed = new Set(names.keys());
    const kept: Node[] = [];
    for (const node of [...this.nodes].reverse()) {
      if (!node.outputs.some((output) => needed.has(output.name))) continue;
      for (const input of node.inputs) needed.add(input.name);
      for (const attribute of Object.values(node.attributes)) {
        for (const name of attribute.kind === "graph" ? freeNames(attribute.value) : []) {
          if (names.has(name)) throw new Error(`${name} is an output and cannot be used inside`);
          needed.add(name);
        }
      }
      kept.push(node);
    }
    // The value itself takes the output's name: an Identity node would cost a copy.
    const rename = (value: Value): Value => ({ ...value, name: names.get(value.name) ?? value.name });
    return {
      nodes: kept
        .reverse()
        .map((node) => ({ ...node, inputs: node.inputs.map(rename), outputs: node.outputs.map(rename) })),
      initializers: this.#initializers.filter((initializer) => needed.has(initializer.name)),
      inputs: this.#inputs,
      outputs: this.#outputs.map((output) => rename(output.value)),
    };
  }

  /** The finished graph as the bytes of an ONNX ModelProto. */
  encode(): Uint8Array {
    return encodeModel(this.model());
  }
}
