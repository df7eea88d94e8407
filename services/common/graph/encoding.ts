import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import type { Attribute, ElementType, Initializer, Model, Node, Value } from "./model.js";

/** Field numbers and enum values are those of onnx/onnx.proto3. */
const IR_VERSION = 9;
const OPSETS = [
  { domain: "", version: 20 },
  { domain: "com.microsoft", version: 1 },
] as const;
export const DATA_TYPE: Readonly<Record<ElementType, number>> = { float32: 1, int64: 7, bool: 9, uint8: 2 };
/** TensorProto.DataLocation */
const EXTERNAL = 1;
const ATTRIBUTE_TYPE: Record<Attribute["kind"], number> = { float: 1, int: 2, string: 3, tensor: 4, graph: 5, ints: 7 };

function message(writer: BinaryWriter, field: number, body: (writer: BinaryWriter) => void): void {
  writer.tag(field, WireType.LengthDelimited).fork();
  body(writer);
  writer.join();
}

const text = (writer: BinaryWriter, field: number, value: string): BinaryWriter =>
  writer.tag(field, WireType.LengthDelimited).string(value);

const integer = (writer: BinaryWriter, field: number, value: number): BinaryWriter =>
  writer.tag(field, WireType.Varint).int64(value);

function packedInts(writer: BinaryWriter, field: number, values: readonly number[]): void {
  message(writer, field, (body) => values.forEach((value) => body.int64(value)));
}

function rawData(type: ElementType, data: readonly number[] | Float32Array): Uint8Array {
  if (data instanceof Float32Array) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const width = type === "float32" ? 4 : type === "int64" ? 8 : 1;
  const view = new DataView(new ArrayBuffer(data.length * width));
  data.forEach((value, i) => {
    if (type === "float32") view.setFloat32(i * width, value, true);
    else if (type === "int64") view.setBigInt64(i * width, BigInt(value), true);
    else view.setUint8(i, value);
  });
  return new Uint8Array(view.buffer);
}

function writeTensor(writer: BinaryWriter, tensor: Initializer): void {
  packedInts(writer, 1, tensor.shape);
  integer(writer, 2, DATA_TYPE[tensor.type]);
  text(writer, 8, tensor.name);
  if (!("location" in tensor.data)) {
    writer.tag(9, WireType.LengthDelimited).bytes(rawData(tensor.type, tensor.data));
    return;
  }
  for (const [key, value] of Object.entries(tensor.data)) {
    message(writer, 13, (entry) => text(text(entry, 1, key), 2, String(value)));
  }
  integer(writer, 14, EXTERNAL);
}

function writeAttribute(writer: BinaryWriter, name: string, attribute: Attribute): void {
  text(writer, 1, name);
  switch (attribute.kind) {
    case "float":
      writer.tag(2, WireType.Bit32).float(attribute.value);
      break;
    case "int":
      integer(writer, 3, attribute.value);
      break;
    case "string":
      text(writer, 4, attribute.value);
      break;
    case "tensor":
      message(writer, 5, (body) => writeTensor(body, attribute.value));
      break;
    case "graph":
      message(writer, 6, (body) => writeGraph(body, attribute.value));
      break;
    case "ints":
      packedInts(writer, 8, attribute.value);
      break;
  }
  integer(writer, 20, ATTRIBUTE_TYPE[attribute.kind]);
}

function writeNode(writer: BinaryWriter, node: Node): void {
  for (const input of node.inputs) text(writer, 1, input.name);
  for (const output of node.outputs) text(writer, 2, output.name);
  text(writer, 3, node.outputs.map((output) => output.name).join("+"));
  text(writer, 4, node.op);
  for (const [name, attribute] of Object.entries(node.attributes)) {
    message(writer, 5, (body) => writeAttribute(body, name, attribute));
  }
  if (node.domain !== "") text(writer, 7, node.domain);
}

function writeValueInfo(writer: BinaryWriter, value: Value): void {
  text(writer, 1, value.name);
  message(writer, 2, (type) =>
    message(type, 1, (tensor) => {
      integer(tensor, 1, DATA_TYPE[value.type]);
      message(tensor, 2, (shape) => {
        for (const dimension of value.shape) message(shape, 1, (dim) => integer(dim, 1, dimension));
      });
    }),
  );
}

function writeGraph(graph: BinaryWriter, { nodes, initializers, inputs, outputs }: Model): void {
  for (const node of nodes) message(graph, 1, (body) => writeNode(body, node));
  text(graph, 2, "shoal");
  for (const initializer of initializers) message(graph, 5, (body) => writeTensor(body, initializer));
  for (const input of inputs) message(graph, 11, (body) => writeValueInfo(body, input));
  for (const output of outputs) message(graph, 12, (body) => writeValueInfo(body, output));
}

/** Encodes a graph as an ONNX ModelProto. Equal models give equal bytes. @param metadata free texts about it, by key */
export function encodeModel(model: Model, metadata: Readonly<Record<string, string>> = {}): Uint8Array {
  const writer = new BinaryWriter();
  integer(writer, 1, IR_VERSION);
  text(writer, 2, "shoal");
  message(writer, 7, (graph) => writeGraph(graph, model));
  for (const { domain, version } of OPSETS) {
    message(writer, 8, (opset) => {
      text(opset, 1, domain);
      integer(opset, 2, version);
    });
  }
  for (const [key, value] of Object.entries(metadata)) {
    message(writer, 14, (entry) => {
      text(entry, 1, key);
      text(entry, 2, value);
    });
  }
  return writer.finish();
}
