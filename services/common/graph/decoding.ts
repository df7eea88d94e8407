import { BinaryReader } from "@bufbuild/protobuf/wire";
import { DATA_TYPE } from "./encoding.js";
import { type ElementType, type Shape, sizeOf } from "./model.js";

/** A constant of a decoded graph; values of all types are held as numbers. */
export interface DecodedTensor {
  readonly name: string;
  readonly type: ElementType;
  readonly shape: Shape;
  readonly data: Float64Array;
}

/** An input or output as the file declares it; a dimension that is only named there is NaN. */
export interface DecodedValue {
  readonly name: string;
  readonly type: ElementType;
  readonly shape: Shape;
}

export type DecodedAttribute = number | string | readonly number[] | DecodedTensor | DecodedGraph;

export interface DecodedNode {
  readonly op: string;
  readonly domain: string;
  /** Names; an empty one stands for an operand that is left out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: ReadonlyMap<string, DecodedAttribute>;
}

export interface DecodedGraph {
  readonly nodes: readonly DecodedNode[];
  readonly initializers: readonly DecodedTensor[];
  readonly inputs: readonly DecodedValue[];
  readonly outputs: readonly DecodedValue[];
}

/** What to do with each field of a message, by its number; other fields are skipped. */
type Fields = Readonly<Record<number, (reader: BinaryReader) => void>>;

function readFields(reader: BinaryReader, end: number, fields: Fields): void {
  while (reader.pos < end) {
    const [field, wire] = reader.tag();
    const read = fields[field];
    if (read === undefined) reader.skip(wire, field);
    else read(reader);
  }
}

function readMessage(reader: BinaryReader, fields: Fields): void {
  const length = reader.uint32();
  readFields(reader, reader.pos + length, fields);
}

const integer = (reader: BinaryReader): number => Number(reader.int64());

function readPacked(reader: BinaryReader, into: number[]): void {
  const end = reader.uint32() + reader.pos;
  while (reader.pos < end) into.push(integer(reader));
}

function typeOf(number: number): ElementType {
  const found = Object.entries(DATA_TYPE).find(([, value]) => value === number);
  if (found === undefined) throw new TypeError(`element type ${number} is not one of ours`);
  return found[0] as ElementType;
}

function readRaw(type: ElementType, bytes: Uint8Array): Float64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (type) {
    case "float32":
      return Float64Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
    case "int64":
      return Float64Array.from({ length: bytes.length / 8 }, (_, i) => Number(view.getBigInt64(8 * i, true)));
    default:
      return Float64Array.from(bytes);
  }
}

function readTensor(reader: BinaryReader): DecodedTensor {
  const shape: number[] = [];
  let [name, number, raw] = ["", 0, new Uint8Array()];
  readMessage(reader, {
    1: (r) => readPacked(r, shape),
    2: (r) => (number = integer(r)),
    8: (r) => (name = r.string()),
    9: (r) => (raw = r.bytes() as Uint8Array<ArrayBuffer>),
  });
  const type = typeOf(number);
  const data = readRaw(type, raw);
  if (data.length !== sizeOf(shape)) throw new TypeError(`tensor ${name}: ${data.length} values for [${shape.join()}]`);
  return { name, type, shape, data };
}

function readAttribute(reader: BinaryReader): [string, DecodedAttribute] {
  const ints: number[] = [];
  let name = "";
  let value: DecodedAttribute = ints;
  readMessage(reader, {
    1: (r) => (name = r.string()),
    2: (r) => (value = r.float()),
    3: (r) => (value = integer(r)),
    4: (r) => (value = r.string()),
    5: (r) => (value = readTensor(r)),
    6: (r) => (value = readGraph(r)),
    8: (r) => readPacked(r, ints),
  });
  return [name, value];
}

function readNode(reader: BinaryReader): DecodedNode {
  const inputs: string[] = [];
  const outputs: string[] = [];
  const attributes = new Map<string, DecodedAttribute>();
  let [op, domain] = ["", ""];
  readMessage(reader, {
    1: (r) => inputs.push(r.string()),
    2: (r) => outputs.push(r.string()),
    4: (r) => (op = r.string()),
    5: (r) => attributes.set(...readAttribute(r)),
    7: (r) => (domain = r.string()),
  });
  return { op, domain, inputs, outputs, attributes };
}

function readValueInfo(reader: BinaryReader): DecodedValue {
  const shape: number[] = [];
  let [name, number] = ["", 0];
  const readDimension = (r: BinaryReader): void => {
    let size = NaN;
    readMessage(r, { 1: (inner) => (size = integer(inner)) });
    shape.push(size);
  };
  const tensor: Fields = { 1: (r) => (number = integer(r)), 2: (r) => readMessage(r, { 1: readDimension }) };
  readMessage(reader, {
    1: (r) => (name = r.string()),
    2: (r) => readMessage(r, { 1: (t) => readMessage(t, tensor) }),
  });
  return { name, type: typeOf(number), shape };
}

function readGraph(reader: BinaryReader): DecodedGraph {
  const graph = {
    nodes: [] as DecodedNode[],
    initializers: [] as DecodedTensor[],
    inputs: [] as DecodedValue[],
    outputs: [] as DecodedValue[],
  };
  readMessage(reader, {
    1: (r) => graph.nodes.push(readNode(r)),
    5: (r) => graph.initializers.push(readTensor(r)),
    11: (r) => graph.inputs.push(readValueInfo(r)),
    12: (r) => graph.outputs.push(readValueInfo(r)),
  });
  return graph;
}

/**
 * Reads the graph of an ONNX ModelProto, as `encodeModel` writes it: raw tensor data, attributes of its kinds.
 * @throws TypeError for a file without a graph or with element types that are not ours; RangeError for one cut short
 */
export function decodeModel(bytes: Uint8Array): DecodedGraph {
  const reader = new BinaryReader(bytes);
  let graph: DecodedGraph | undefined;
  readFields(reader, bytes.length, { 7: (r) => (graph = readGraph(r)) });
  if (graph === undefined) throw new TypeError("the file has no graph");
  return graph;
}

/**
 * A graph's inputs and outputs alone, of any ONNX ModelProto.
 * @throws TypeError for element types that are not ours
 */
export function decodeInterface(bytes: Uint8Array): Pick<DecodedGraph, "inputs" | "outputs"> {
  const [inputs, outputs]: [DecodedValue[], DecodedValue[]] = [[], []];
  const graph: Fields = {
    11: (r) => inputs.push(readValueInfo(r)),
    12: (r) => outputs.push(readValueInfo(r)),
  };
  readFields(new BinaryReader(bytes), bytes.length, { 7: (r) => readMessage(r, graph) });
  return { inputs, outputs };
}

/** The free text that a file has under a key of its metadata. */
export function readMetadata(bytes: Uint8Array, key: string): string | undefined {
  const reader = new BinaryReader(bytes);
  let found: string | undefined;
  readFields(reader, bytes.length, {
    14: (r) => {
      const entry = { key: "", value: "" };
      readMessage(r, { 1: (s) => (entry.key = s.string()), 2: (s) => (entry.value = s.string()) });
      if (entry.key === key) found = entry.value;
    },
  });
  return found;
}
