import { sizeOf } from "./builder.js";

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

interface Entry {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

type Dtype = "F32" | "F16" | "BF16";
const BYTES: Record<Dtype, number> = { F32: 4, F16: 2, BF16: 2 };
const MAX_RANK = 8;
const LENGTH_BYTES = 8;
const ALIGNMENT = 8;

class Refusal extends Error {}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isDtype = (value: unknown): value is Dtype => typeof value === "string" && Object.hasOwn(BYTES, value);
const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function readHeader(bytes: Uint8Array): { header: Record<string, unknown>; body: Uint8Array } {
  if (bytes.length < LENGTH_BYTES) throw new Refusal("the file is shorter than its 8-byte length field");
  const length = new DataView(bytes.buffer, bytes.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length > BigInt(bytes.length - LENGTH_BYTES))
    throw new Refusal(`the header's length ${length} is beyond the file`);
  const bodyStart = LENGTH_BYTES + Number(length);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(LENGTH_BYTES, bodyStart)));
  } catch {
    throw new Refusal("the header is not JSON in UTF-8");
  }
  if (!isRecord(header)) throw new Refusal("the header is not a JSON object");
  return { header, body: bytes.subarray(bodyStart) };
}

function readEntry(name: string, value: unknown): Entry {
  if (!isRecord(value)) throw new Refusal(`tensor ${name}: not an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isDtype(dtype)) throw new Refusal(`tensor ${name}: dtype ${String(dtype)} is not F32, F16 or BF16`);
  if (!Array.isArray(shape) || shape.length > MAX_RANK || !shape.every(isCount)) {
    throw new Refusal(`tensor ${name}: the shape is not a list of at most ${MAX_RANK} sizes`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw new Refusal(`tensor ${name}: data_offsets are not two positions`);
  }
  const [begin = 0, end = 0] = offsets;
  const size = sizeOf(shape) * BYTES[dtype];
  if (end - begin !== size) throw new Refusal(`tensor ${name}: ${end - begin} bytes where its shape needs ${size}`);
  return { name, dtype, shape, begin, end };
}

/** IEEE half precision to number. */
function decodeHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function decode(dtype: Dtype, bytes: Uint8Array): Float32Array {
  // The file's bytes may stand at any address, so they are copied before they are read as wider elements.
  const copy = new Uint8Array(bytes).buffer;
  if (dtype === "F32") return new Float32Array(copy);
  const halves = new Uint16Array(copy);
  if (dtype === "F16") return Float32Array.from(halves, decodeHalf);
  return new Float32Array(Uint32Array.from(halves, (bits) => bits << 16).buffer);
}

/**
 * Reads a file of F32, F16 or BF16 tensors into float32. Whatever does not fit together (lengths, offsets, overlaps,
 * gaps, shapes) is refused with the tensor's name, and nothing is allocated beyond a small multiple of the file's size.
 */
export function parseSafetensors(bytes: Uint8Array): ParsedSafetensors {
  try {
    const { header, body } = readHeader(bytes);
    const entries = Object.entries(header)
      .filter(([name]) => name !== "__metadata__")
      .map(([name, value]) => readEntry(name, value));
    let position = 0;
    for (const { name, begin, end } of [...entries].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
      if (begin !== position)
        throw new Refusal(`tensor ${name}: begins at ${begin}, the one before it ends at ${position}`);
      position = end;
    }
    if (position !== body.length) throw new Refusal(`the tensors take ${position} bytes, the file has ${body.length}`);
    const tensors = entries.map(({ name, dtype, shape, begin, end }) => {
      return [name, { shape, data: decode(dtype, body.subarray(begin, end)) }] as const;
    });
    return { ok: true, tensors: new Map(tensors) };
  } catch (error) {
    if (error instanceof Refusal) return { ok: false, reason: error.message };
    throw error;
  }
}

/** Writes tensors as F32 in the order given. Equal tensors give equal bytes. */
export function writeSafetensors(
  tensors: ReadonlyMap<string, NamedTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  const entries: [string, unknown][] = Object.keys(metadata).length === 0 ? [] : [["__metadata__", metadata]];
  let position = 0;
  for (const [name, { shape, data }] of tensors) {
    if (sizeOf(shape) !== data.length) throw new RangeError(`tensor ${name}: ${data.length} values for its shape`);
    entries.push([name, { dtype: "F32", shape, data_offsets: [position, position + data.byteLength] }]);
    position += data.byteLength;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const headerLength = Math.ceil(json.length / ALIGNMENT) * ALIGNMENT;
  const file = new Uint8Array(LENGTH_BYTES + headerLength + position).fill(
    0x20,
    LENGTH_BYTES,
    LENGTH_BYTES + headerLength,
  );
  new DataView(file.buffer).setBigUint64(0, BigInt(headerLength), true);
  file.set(json, LENGTH_BYTES);
  let offset = LENGTH_BYTES + headerLength;
  for (const { data } of tensors.values()) {
    file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), offset);
    offset += data.byteLength;
  }
  return file;
}
