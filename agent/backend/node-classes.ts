import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

/** Type and shape of a tensor, as the runtime names them ("float32"). */
export interface TensorFacts {
  readonly type: string;
  readonly shape: readonly number[];
}

/** An operand of a class of nodes. */
export interface ClassInput {
  /** Undefined where the operand is left out. */
  readonly facts: TensorFacts | undefined;
  /** The constant it is, as a TensorProto. */
  readonly constant: Uint8Array | undefined;
  /** Whether it comes into the graph from outside: weights and optimizer state, which no cache holds from step to step. */
  readonly outside: boolean;
  /** Its name, if a graph inside the node takes it from around the node instead of as an operand. */
  readonly captured: string | undefined;
}

/** Nodes of a graph that do the same work: one operator with the same attributes on operands of the same shapes. */
export interface NodeClass {
  readonly op: string;
  readonly count: number;
  readonly inputs: readonly ClassInput[];
  readonly outputs: readonly TensorFacts[];
  /** The fields of the NodeProto but for the names of operands and results. */
  readonly rest: Uint8Array;
}

/** Field numbers are those of onnx/onnx.proto3. */
const MODEL_GRAPH = 7;
const MODEL_OPSET = 8;
const GRAPH_NODE = 1;
const GRAPH_INITIALIZER = 5;
const GRAPH_INPUT = 11;
const GRAPH_OUTPUT = 12;
const NODE_ATTRIBUTE = 5;
const ATTRIBUTE_GRAPH = 6;
const TENSOR_NAME = 8;
const ELEMENT_TYPES: Readonly<Record<string, number>> = { float32: 1, uint8: 2, int32: 6, int64: 7, bool: 9 };

/** Goes through the fields of a message; a handler that returns false has not read its field. */
function eachField(reader: BinaryReader, end: number, handle: (field: number, from: number) => boolean): void {
  while (reader.pos < end) {
    const from = reader.pos;
    const [field, wire] = reader.tag();
    if (!handle(field, from)) reader.skip(wire, field);
  }
}

interface RawNode {
  readonly op: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly rest: Uint8Array;
  /** The same for nodes that do the same work, whatever the values in graphs inside of them are called. */
  readonly work: string;
  /** Names that graphs inside the node take from around it. */
  readonly captures: readonly string[];
}

interface RawGraph {
  readonly nodes: readonly RawNode[];
  readonly constants: ReadonlyMap<string, Uint8Array>;
  readonly inputs: readonly string[];
  readonly outputs: ReadonlySet<string>;
}

/** The graphs among a node's attributes. */
function graphsIn(attribute: Uint8Array): RawGraph[] {
  const reader = new BinaryReader(attribute);
  const graphs: RawGraph[] = [];
  eachField(reader, attribute.length, (field) => {
    if (field === ATTRIBUTE_GRAPH) graphs.push(readGraph(reader.bytes()));
    return field === ATTRIBUTE_GRAPH;
  });
  return graphs;
}

/** What a graph uses but does not make. */
function capturesOf({ nodes, inputs, constants, outputs }: RawGraph): string[] {
  const own = new Set([...inputs, ...constants.keys(), ...nodes.flatMap((node) => node.outputs)]);
  const used = [...nodes.flatMap((node) => [...node.inputs, ...node.captures]), ...outputs];
  return [...new Set(used)].filter((name) => name !== "" && !own.has(name));
}

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

/** What a graph does, with its values numbered as they come instead of named. */
function workOf({ nodes, constants, inputs, outputs }: RawGraph): unknown {
  const numbers = new Map<string, number>([["", -1]]);
  const numberOf = (name: string): number => {
    const number = numbers.get(name) ?? numbers.size;
    numbers.set(name, number);
    return number;
  };
  return [
    inputs.map(numberOf),
    [...constants].map(([name, tensor]) => [numberOf(name), base64(withoutName(tensor))]),
    nodes.map(({ work, ...node }) => [work, ...[node.inputs, node.captures, node.outputs].map((n) => n.map(numberOf))]),
    [...outputs].map(numberOf),
  ];
}

function readNode(bytes: Uint8Array): RawNode {
  const reader = new BinaryReader(bytes);
  const [inputs, outputs]: [string[], string[]] = [[], []];
  const rest: Uint8Array[] = [];
  const work: unknown[] = [];
  const captures: string[] = [];
  let op = "";
  eachField(reader, bytes.length, (field, from) => {
    if (field === 1) inputs.push(reader.string());
    else if (field === 2) outputs.push(reader.string());
    else if (field === 3 || field === 6) reader.string();
    else if (field === 4) {
      op = reader.string();
      rest.push(bytes.subarray(from, reader.pos));
      work.push(op);
    } else {
      const content = reader.bytes();
      const graphs = field === NODE_ATTRIBUTE ? graphsIn(content) : [];
      captures.push(...graphs.flatMap(capturesOf));
      rest.push(bytes.subarray(from, reader.pos));
      work.push(graphs.length > 0 ? graphs.map(workOf) : base64(content));
    }
    return true;
  });
  return {
    ...{ op, inputs, outputs, rest: Buffer.concat(rest) },
    ...{ work: JSON.stringify(work), captures: [...new Set(captures)] },
  };
}

function nameIn(message: Uint8Array, nameField: number): string {
  const reader = new BinaryReader(message);
  let name = "";
  eachField(reader, message.length, (field) => {
    if (field === nameField) name = reader.string();
    return field === nameField;
  });
  return name;
}

function readGraph(bytes: Uint8Array): RawGraph {
  const nodes: RawNode[] = [];
  const constants = new Map<string, Uint8Array>();
  const inputs: string[] = [];
  const outputs = new Set<string>();
  const reader = new BinaryReader(bytes);
  eachField(reader, bytes.length, (field) => {
    if (field === GRAPH_NODE) nodes.push(readNode(reader.bytes()));
    else if (field === GRAPH_INITIALIZER) {
      const tensor = reader.bytes();
      constants.set(nameIn(tensor, TENSOR_NAME), tensor);
    } else if (field === GRAPH_INPUT) inputs.push(nameIn(reader.bytes(), 1));
    else if (field === GRAPH_OUTPUT) outputs.add(nameIn(reader.bytes(), 1));
    else return false;
    return true;
  });
  return { nodes, constants, inputs, outputs };
}

/** A model's graph, and its operator sets as they stand in the file. */
function readModel(bytes: Uint8Array): RawGraph & { readonly opsets: readonly Uint8Array[] } {
  const opsets: Uint8Array[] = [];
  let graph = readGraph(new Uint8Array());
  const reader = new BinaryReader(bytes);
  eachField(reader, bytes.length, (field) => {
    if (field === MODEL_GRAPH) graph = readGraph(reader.bytes());
    else if (field === MODEL_OPSET) opsets.push(reader.bytes());
    else return false;
    return true;
  });
  return { ...graph, opsets };
}

function message(writer: BinaryWriter, field: number, body: (writer: BinaryWriter) => void): void {
  writer.tag(field, WireType.LengthDelimited).fork();
  body(writer);
  writer.join();
}

/**
 * The model with every value an output, so that a runtime that opens it tells all shapes. A second graph message is
 * merged with the first, by protobuf's rules.
 */
export function exposeValues(model: Uint8Array): Uint8Array {
  const { nodes, outputs } = readModel(model);
  const inner = nodes.flatMap((node) => node.outputs).filter((name) => name !== "" && !outputs.has(name));
  const writer = new BinaryWriter().raw(model);
  message(writer, MODEL_GRAPH, (graph) => {
    for (const name of inner)
      message(graph, GRAPH_OUTPUT, (value) => value.tag(1, WireType.LengthDelimited).string(name));
  });
  return writer.finish();
}

/**
 * Sorts a model's nodes by the work they do.
 * @param factsOf type and shape of every value that is no constant
 * @param outside names of the graph's inputs
 */
export function classifyNodes(
  model: Uint8Array,
  factsOf: ReadonlyMap<string, TensorFacts>,
  outside: ReadonlySet<string>,
): { classes: readonly NodeClass[]; opsets: readonly Uint8Array[] } {
  const { nodes, constants, opsets } = readModel(model);
  const classes = new Map<string, NodeClass>();
  for (const { op, inputs, outputs, rest, work, captures } of nodes) {
    const operand = (name: string, captured: string | undefined): ClassInput => ({
      facts: factsOf.get(name),
      constant: constants.get(name),
      outside: outside.has(name) && captured === undefined,
      captured,
    });
    const operands = [
      ...inputs.map((name) => operand(name, undefined)),
      ...captures.map((name) => operand(name, name)),
    ];
    const results = outputs.flatMap((name) => factsOf.get(name) ?? []);
    const key = JSON.stringify([
      work,
      operands.map(({ facts, constant, outside: cold }) =>
        constant === undefined ? [facts, cold] : base64(withoutName(constant)),
      ),
    ]);
    const count = (classes.get(key)?.count ?? 0) + 1;
    classes.set(key, { op, count, inputs: operands, outputs: results, rest });
  }
  return { classes: [...classes.values()], opsets };
}

function writeFacts(writer: BinaryWriter, name: string, { type, shape }: TensorFacts): void {
  writer.tag(1, WireType.LengthDelimited).string(name);
  message(writer, 2, (typeProto) => {
    message(typeProto, 1, (tensor) => {
      tensor.tag(1, WireType.Varint).int32(ELEMENT_TYPES[type] ?? 0);
      message(tensor, 2, (dims) => {
        for (const size of shape) message(dims, 1, (dim) => dim.tag(1, WireType.Varint).int64(size));
      });
    });
  });
}

/** Name of an operand of the bench graph that is fed. */
export const feedName = ({ captured }: ClassInput, input: number, set: number): string =>
  captured ?? `x${input}.${set}`;
export const BENCH_OUTPUT = "y0.0";

/**
 * A model that runs a class's node so many times, on operands from outside that change from one to the next through
 * `sets` copies, and on the same ones otherwise. One result alone is an output; the others are dropped as they come.
 */
export function benchModel(one: NodeClass, opsets: readonly Uint8Array[], copies: number, sets: number): Uint8Array {
  const writer = new BinaryWriter();
  writer.tag(1, WireType.Varint).int32(10);
  const setsOf = ({ outside }: ClassInput): number => (outside ? sets : 1);
  message(writer, MODEL_GRAPH, (graph) => {
    for (let copy = 0; copy < copies; copy++) {
      message(graph, GRAPH_NODE, (node) => {
        one.inputs.forEach((input, i) => {
          if (input.captured !== undefined) return;
          const name =
            input.facts === undefined && input.constant === undefined
              ? ""
              : operandName(input, i, copy % setsOf(input));
          node.tag(1, WireType.LengthDelimited).string(name);
        });
        one.outputs.forEach((_, i) => node.tag(2, WireType.LengthDelimited).string(`y${i}.${copy}`));
        node.raw(one.rest);
      });
    }
    graph.tag(2, WireType.LengthDelimited).string("bench");
    one.inputs.forEach((input, i) => {
      const { constant, facts } = input;
      if (constant !== undefined)
        message(graph, GRAPH_INITIALIZER, (tensor) => renamed(tensor, constant, operandName(input, i, 0)));
      else if (facts !== undefined) {
        for (let set = 0; set < setsOf(input); set++) {
          message(graph, GRAPH_INPUT, (value) => writeFacts(value, feedName(input, i, set), facts));
        }
      }
    });
    const [first] = one.outputs;
    if (first !== undefined) message(graph, GRAPH_OUTPUT, (value) => writeFacts(value, BENCH_OUTPUT, first));
  });
  for (const opset of opsets) message(writer, MODEL_OPSET, (body) => body.raw(opset));
  return writer.finish();
}

const operandName = (input: ClassInput, index: number, set: number): string =>
  input.constant === undefined ? feedName(input, index, set) : (input.captured ?? `c${index}`);

/** A TensorProto under another name: of a field that is there twice the last one counts. */
function renamed(writer: BinaryWriter, tensor: Uint8Array, name: string): void {
  writer.raw(tensor).tag(TENSOR_NAME, WireType.LengthDelimited).string(name);
}

/** A TensorProto's fields but for its name. */
function withoutName(tensor: Uint8Array): Uint8Array {
  const reader = new BinaryReader(tensor);
  const kept: Uint8Array[] = [];
  let after = 0;
  eachField(reader, tensor.length, (field, from) => {
    if (field !== TENSOR_NAME) return false;
    reader.bytes();
    kept.push(tensor.subarray(after, from));
    after = reader.pos;
    return true;
  });
  return Buffer.concat([...kept, tensor.subarray(after)]);
}
