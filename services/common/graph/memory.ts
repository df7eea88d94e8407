import { type ElementType, type Model, type Node, sizeOf, type Value } from "./model.js";

/** What running a graph takes, found by going through it as ONNX Runtime does. */
export interface MemoryDemand {
  /** Bytes of the tensors that are handed in. */
  readonly inputBytes: number;
  /** Most bytes alive at once of what is computed; outputs of the graph are buffers of the caller. */
  readonly workingBytes: number;
  /** Bytes that are computed from constants when the graph is opened, and kept. */
  readonly constantBytes: number;
  /** Nodes, those of inner graphs included. */
  readonly nodes: number;
}

const WIDTH: Readonly<Record<ElementType, number>> = { float32: 4, int64: 8, bool: 1, uint8: 1 };
const bytesOf = ({ type, shape }: Value): number => WIDTH[type] * sizeOf(shape);

/** Operators whose result is their first operand's memory under another shape. */
const VIEWS = new Set(["Reshape", "Identity"]);
/** Operators that write over an operand that nobody else reads. */
const IN_PLACE = new Set("Add Sub Mul Div Sum Neg Exp Sqrt Sigmoid Softmax LogSoftmax Cast Trilu".split(" "));

const graphsIn = ({ attributes }: Node): Model[] =>
  Object.values(attributes).flatMap((attribute) => (attribute.kind === "graph" ? [attribute.value] : []));

/** Values that a graph uses and does not define. */
function outerValues({ nodes, initializers, inputs, outputs }: Model): Value[] {
  const own = new Set([...initializers, ...inputs, ...nodes.flatMap((node) => node.outputs)].map(({ name }) => name));
  return [...nodes.flatMap(readsOf), ...outputs].filter(({ name }) => !own.has(name));
}

/** All that a node reads, by graphs inside it too. */
const readsOf = (node: Node): Value[] => [...node.inputs, ...graphsIn(node).flatMap(outerValues)];

/** The order of ONNX Runtime: depth first backwards from the nodes that nothing depends on, later ones before earlier. */
function runOrder(nodes: readonly Node[]): Node[] {
  const makers = new Map(nodes.flatMap((node, i) => node.outputs.map(({ name }) => [name, i] as const)));
  const sources = nodes.map((node) =>
    [...new Set(readsOf(node).flatMap(({ name }) => makers.get(name) ?? []))].sort((a, b) => a - b),
  );
  const used = new Set(sources.flat());
  const stack = nodes.flatMap((_, i) => (used.has(i) ? [] : [{ i, isLeft: false }]));
  const seen = new Set<number>();
  const order: Node[] = [];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const { i, isLeft } = top;
    if (isLeft) order.push(nodes[i] as Node);
    else if (!seen.has(i)) {
      seen.add(i);
      stack.push({ i, isLeft: true });
      for (const source of sources[i] ?? []) if (!seen.has(source)) stack.push({ i: source, isLeft: false });
    }
  }
  return order;
}

/** Names of what is computed from constants alone, which is done once. */
function constantNames({ initializers }: Model, order: readonly Node[]): Set<string> {
  const names = new Set(initializers.map(({ name }) => name));
  for (const node of order) {
    if (node.inputs.length === 0 || graphsIn(node).length > 0) continue;
    if (node.inputs.every(({ name }) => names.has(name))) for (const { name } of node.outputs) names.add(name);
  }
  return names;
}

/** Memory that is taken and given back; a buffer is known by the name of the value it was made for. */
class Buffers {
  readonly #bytes = new Map<string, number>();
  #live: number;
  #peak: number;

  constructor(live: number) {
    this.#live = this.#peak = live;
  }

  get live(): number {
    return this.#live;
  }

  get peak(): number {
    return this.#peak;
  }

  has(name: string): boolean {
    return this.#bytes.has(name);
  }

  take(name: string, bytes: number): void {
    this.#bytes.set(name, bytes);
    this.#live += bytes;
    this.reach(this.#live);
  }

  giveBack(name: string): void {
    this.#live -= this.#bytes.get(name) ?? 0;
    this.#bytes.delete(name);
  }

  /** Notes a peak that something else, which is over, had on top of these. */
  reach(bytes: number): void {
    this.#peak = Math.max(this.#peak, bytes);
  }
}

interface Walk {
  readonly peak: number;
  /** Bytes of the graph's own outputs, alive at its end. */
  readonly kept: number;
}

/** Which buffer each value lies in, and how many reads of a buffer are still to come. */
class Places {
  readonly #buffer = new Map<string, string>();
  readonly #reads = new Map<string, number>();
  readonly #left = new Map<string, number>();

  constructor(nodes: readonly Node[], outputs: readonly Value[]) {
    for (const { name } of [...nodes.flatMap(readsOf), ...outputs]) {
      this.#reads.set(name, (this.#reads.get(name) ?? 0) + 1);
    }
  }

  bufferOf(name: string): string | undefined {
    return this.#buffer.get(name);
  }

  /** The buffer a node's first output takes over from an operand, if it does. */
  #inherited({ op, inputs, outputs }: Node): string | undefined {
    const [first, second] = inputs;
    if (first !== undefined && VIEWS.has(op)) return this.#buffer.get(first.name) ?? first.name;
    if (!IN_PLACE.has(op)) return undefined;
    const size = outputs[0] === undefined ? 0 : bytesOf(outputs[0]);
    const free = [first, second].find((operand) => {
      const buffer = operand && this.#buffer.get(operand.name);
      return buffer !== undefined && operand !== undefined && this.#left.get(buffer) === 1 && bytesOf(operand) === size;
    });
    return free && this.#buffer.get(free.name);
  }

  /** Gives each output of a node that anybody reads its buffer. */
  put(node: Node, isOutside: (name: string) => boolean): void {
    node.outputs.forEach(({ name }, i) => {
      const inherited = i === 0 ? this.#inherited(node) : undefined;
      const buffer = isOutside(name) ? undefined : (inherited ?? name);
      if (buffer === undefined) return;
      this.#buffer.set(name, buffer);
      this.#left.set(buffer, (this.#left.get(buffer) ?? 0) + (this.#reads.get(name) ?? 0));
    });
  }

  /** Notes that a node has run. @returns buffers that nobody reads any more */
  done(node: Node): Set<string> {
    const buffers = readsOf(node).flatMap(({ name }) => this.#buffer.get(name) ?? []);
    for (const buffer of buffers) this.#left.set(buffer, (this.#left.get(buffer) ?? 0) - 1);
    const made = node.outputs.flatMap(({ name }) => this.#buffer.get(name) ?? []);
    return new Set([...buffers, ...made].filter((buffer) => (this.#left.get(buffer) ?? 0) <= 0));
  }
}

/** Peak of the graphs inside a node, above `live`. A loop's second run needs what the first one made. */
function walkInside(node: Node, live: number): number {
  const peaks = graphsIn(node).map((inner) => {
    if (node.op !== "Loop") return walk(inner, live, true).peak;
    const first = walk(inner, live, false);
    return Math.max(first.peak, walk(inner, live + first.kept, false).peak);
  });
  return Math.max(live, ...peaks);
}

function walk(model: Model, live: number, outputsAreGiven: boolean): Walk {
  const order = runOrder(model.nodes);
  const constants = constantNames(model, order);
  const nodes = order.filter((node) => !node.outputs.every(({ name }) => constants.has(name)));
  const outputs = new Set(model.outputs.map(({ name }) => name));
  const inputs = new Set([...model.inputs, ...outerValues(model)].map(({ name }) => name));
  const places = new Places(nodes, model.outputs);
  const buffers = new Buffers(live);
  for (const node of nodes) {
    places.put(node, (name) => outputsAreGiven && outputs.has(name));
    for (const output of node.outputs) {
      const buffer = places.bufferOf(output.name);
      const isNew = buffer !== undefined && !buffers.has(buffer) && !inputs.has(buffer) && !constants.has(buffer);
      if (isNew) buffers.take(buffer, bytesOf(output));
    }
    buffers.reach(walkInside(node, buffers.live));
    for (const buffer of places.done(node)) buffers.giveBack(buffer);
  }
  return { peak: buffers.peak, kept: buffers.live - live };
}

const countNodes = ({ nodes }: Model): number =>
  nodes.reduce((sum, node) => sum + 1 + graphsIn(node).reduce((all, inner) => all + countNodes(inner), 0), 0);

function constantBytes(model: Model): number {
  const constants = constantNames(model, model.nodes);
  const nodes = model.nodes.filter((node) => !node.outputs.every(({ name }) => constants.has(name)));
  const used = new Set(nodes.flatMap((node) => readsOf(node).map(({ name }) => name)));
  const made = model.nodes.flatMap((node) => node.outputs).filter(({ name }) => constants.has(name) && used.has(name));
  return made.reduce((sum, value) => sum + bytesOf(value), 0);
}

/** Memory of a run of a graph whose outputs are written into the caller's buffers. */
export function memoryOf(model: Model): MemoryDemand {
  return {
    inputBytes: model.inputs.reduce((sum, input) => sum + bytesOf(input), 0),
    workingBytes: walk(model, 0, true).peak,
    constantBytes: constantBytes(model),
    nodes: countNodes(model),
  };
}
