import { sizeOf } from "./builder.js";
import { readJson } from "./json.js";
import { shownName } from "./families/family.js";
import { decodeWeights, DTYPE_BYTES, isWeightType } from "./dtypes.js";

/**
 * The safetensors format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without gaps.
 * The header is read as hostile input.
 */

export interface NamedTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

export type ParsedSafetensors =
  | { readonly ok: true; readonly tensors: ReadonlyMap<string, NamedTensor> }
  | { readonly ok: false; readonly reason: string };

/** Where a tensor's bytes lie in a file's body. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** A file whose header fits its bytes; no tensor has been decoded yet. */
export interface SafetensorsFile {
  /** The JSON header as it stands, with its padding. */
  readonly header: Uint8Array;
  /** In the header's order. */
  readonly entries: readonly TensorEntry[];
  readonly body: Uint8Array;
}

export type ReadSafetensors =
  { readonly ok: true; readonly file: SafetensorsFile } | { readonly ok: false; readonly reason: string };

const MAX_RANK = 8;
/** Those of published models are below 1 MiB. Parsed JSON takes many times its bytes. */
const MAX_HEADER_BYTES = 16 * 1024 * 1024;
const LENGTH_BYTES = 8;
const ALIGNMENT = 8;

const METADATA = "__metadata__";

class Refusal extends Error {}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function readHeader(bytes: Uint8Array): { json: Record<string, unknown>; header: Uint8Array; body: Uint8Array } {
  if (bytes.length < LENGTH_BYTES) throw new Refusal("the file is shorter than its 8-byte length field");
  const length = new DataView(bytes.buffer, bytes.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length > BigInt(bytes.length - LENGTH_BYTES))
    throw new Refusal(`the header's length ${length} is beyond the file`);
  const bodyStart = LENGTH_BYTES + Number(length);
  const header = bytes.subarray(LENGTH_BYTES, bodyStart);
  const read = readJson(header, MAX_HEADER_BYTES);
  if (!read.ok) throw new Refusal(`the header ${read.reason}`);
  const { value: json } = read;
  if (!isRecord(json)) throw new Refusal("the header is not a JSON object");
  return { json, header, body: bytes.subarray(bodyStart) };
}

function readEntry(name: string, value: unknown): TensorEntry {
  const refuse = (reason: string): Refusal => new Refusal(`tensor ${shownName(name)}: ${reason}`);
  if (!isRecord(value)) throw refuse("not an object");
  const { dtype, shape, data_offsets: offsets } = value;
  // Of anything but text not even a text is made: what it holds may be made so that this fails.
  if (typeof dtype !== "string") throw refuse("its dtype is not a name");
  if (!Object.hasOwn(DTYPE_BYTES, dtype)) throw refuse(`dtype ${shownName(dtype)} is not known`);
  if (!Array.isArray(shape) || shape.length > MAX_RANK || !shape.every(isCount)) {
    throw refuse(`the shape is not a list of at most ${MAX_RANK} sizes`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw refuse(`data_offsets are not two positions`);
  }
  const [begin = 0, end = 0] = offsets;
  const size = sizeOf(shape) * (DTYPE_BYTES[dtype] ?? 0);
  if (end - begin !== size) throw refuse(`${end - begin} bytes where its shape needs ${size}`);
  return { name, dtype, shape, begin, end };
}

/**
 * Reads a file's header and holds it against the file's length. Whatever does not fit together (lengths, offsets,
 * overlaps, gaps, shapes) is refused with the tensor's name, and nothing is allocated beyond a small multiple of the
 * header's size.
 */
export function readSafetensors(bytes: Uint8Array): ReadSafetensors {
  try {
    const { json, header, body } = readHeader(bytes);
    const metadata = json[METADATA];
    if (
      metadata !== undefined &&
      !(isRecord(metadata) && Object.values(metadata).every((x) => typeof x === "string"))
    ) {
      throw new Refusal(`${METADATA} is not an object of texts`);
    }
    const entries = Object.entries(json)
      .filter(([name]) => name !== METADATA)
      .map(([name, value]) => readEntry(name, value));
    let position = 0;
    for (const { name, begin, end } of [...entries].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
      if (begin !== position)
        throw new Refusal(`tensor ${shownName(name)}: begins at ${begin}, the one before it ends at ${position}`);
      position = end;
    }
    if (position !== body.length) throw new Refusal(`the tensors take ${position} bytes, the file has ${body.length}`);
    return { ok: true, file: { header, entries, body } };
  } catch (error) {
    if (error instanceof Refusal) return { ok: false, reason: error.message };
    throw error;
  }
}

/** Reads a file of F32, F16 or BF16 tensors into float32; others are refused with the tensor's name. */
export function parseSafetensors(bytes: Uint8Array): ParsedSafetensors {
  const read = readSafetensors(bytes);
  if (!read.ok) return read;
  const tensors = new Map<string, NamedTensor>();
  for (const { name, dtype, shape, begin, end } of read.file.entries) {
    if (!isWeightType(dtype))
      return { ok: false, reason: `tensor ${shownName(name)}: dtype ${dtype} is not F32, F16 or BF16` };
    tensors.set(name, { shape, data: decodeWeights(dtype, read.file.body.subarray(begin, end)) });
  }
  return { ok: true, tensors };
}

/** The bytes of a file of which header and body are known. */
export function joinSafetensors(header: Uint8Array, body: readonly Uint8Array[]): Uint8Array {
  const size = body.reduce((sum, part) => sum + part.length, 0);
  const file = new Uint8Array(LENGTH_BYTES + header.length + size);
  new DataView(file.buffer).setBigUint64(0, BigInt(header.length), true);
  file.set(header, LENGTH_BYTES);
  let offset = LENGTH_BYTES + header.length;
  for (const part of body) {
    file.set(part, offset);
    offset += part.length;
  }
  return file;
}

/** Writes tensors as F32 in the order given. Equal tensors give equal bytes. */
export function writeSafetensors(
  tensors: ReadonlyMap<string, NamedTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  const entries: [string, unknown][] = Object.keys(metadata).length === 0 ? [] : [[METADATA, metadata]];
  let position = 0;
  for (const [name, { shape, data }] of tensors) {
    if (sizeOf(shape) !== data.length) throw new RangeError(`tensor ${name}: ${data.length} values for its shape`);
    entries.push([name, { dtype: "F32", shape, data_offsets: [position, position + data.byteLength] }]);
    position += data.byteLength;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const header = new Uint8Array(Math.ceil(json.length / ALIGNMENT) * ALIGNMENT).fill(0x20);
  header.set(json);
  const parts = [...tensors.values()].map(({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return joinSafetensors(header, parts);
}
