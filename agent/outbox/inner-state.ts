import { sha256Digest } from "#common/tensor/digest.js";
import { fromBytes, toBytes } from "#common/tensor/flat.js";

/** What a job leaves on the device from one round to the next. */
export interface InnerState {
  /** Optimizer steps behind the moments, for AdamW's bias correction. */
  readonly steps: number;
  /** The optimizer's moments [parameters], empty for those it has not; undefined if the job does not keep them. */
  readonly moments: { readonly m: Float32Array; readonly v: Float32Array } | undefined;
  /** What the codec lost so far [parameters]; undefined without error feedback. */
  readonly residual: Float32Array | undefined;
}

interface Header {
  steps: number;
  /** Bytes of m and v; null if they are not kept. */
  moments: [number, number] | null;
  /** Bytes; null if there is none. */
  residual: number | null;
  digest: string;
}

const MAGIC = "shoal-inner-2\n";

/** Bytes of a state: magic, one line of JSON, then the vectors as little-endian fp32. */
export function encodeInnerState(state: InnerState): Uint8Array[] {
  const vectors = [state.moments?.m, state.moments?.v, state.residual].filter((vector) => vector !== undefined);
  const parts = vectors.map(toBytes);
  const header: Header = {
    steps: state.steps,
    moments: state.moments === undefined ? null : [state.moments.m.byteLength, state.moments.v.byteLength],
    residual: state.residual?.byteLength ?? null,
    digest: sha256Digest(...parts),
  };
  return [new TextEncoder().encode(`${MAGIC}${JSON.stringify(header)}\n`), ...parts];
}

const isSize = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;

function isHeader(value: unknown): value is Header {
  if (typeof value !== "object" || value === null) return false;
  const { steps, moments, residual, digest } = value as Partial<Record<keyof Header, unknown>>;
  const pair = Array.isArray(moments) && moments.length === 2 && moments.every(isSize);
  return (
    typeof steps === "number" &&
    (moments === null || pair) &&
    (residual === null || isSize(residual)) &&
    typeof digest === "string"
  );
}

function parseHeader(bytes: Uint8Array): { header: Header; body: Uint8Array } | undefined {
  const end = bytes.indexOf(10, MAGIC.length);
  if (end < 0 || new TextDecoder().decode(bytes.subarray(0, MAGIC.length)) !== MAGIC) return undefined;
  try {
    const header: unknown = JSON.parse(new TextDecoder().decode(bytes.subarray(MAGIC.length, end)));
    return isHeader(header) ? { header, body: bytes.subarray(end + 1) } : undefined;
  } catch {
    return undefined;
  }
}

/** The state in these bytes; undefined if they are damaged. */
export function decodeInnerState(bytes: Uint8Array): InnerState | undefined {
  const parsed = parseHeader(bytes);
  if (parsed === undefined) return undefined;
  const { header, body } = parsed;
  if (sha256Digest(body) !== header.digest) return undefined;
  const [m = 0, v = 0] = header.moments ?? [];
  if (m + v + (header.residual ?? 0) !== body.length || m % 4 !== 0 || v % 4 !== 0) return undefined;
  const vector = (offset: number, bytes: number): Float32Array => fromBytes(body.subarray(offset, offset + bytes));
  return {
    steps: header.steps,
    moments: header.moments === null ? undefined : { m: vector(0, m), v: vector(m, v) },
    residual: header.residual === null ? undefined : vector(m + v, header.residual),
  };
}
