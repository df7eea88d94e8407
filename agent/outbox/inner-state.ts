import { sha256Digest } from "#common/tensor/digest.js";
import { viewBytes, viewFloats } from "#common/tensor/flat.js";

/** Weights of its own that a device goes on with in a job whose rounds synchronise fragments. */
export interface LocalWeights {
  /** After the round's local steps [parameters]. */
  readonly weights: Float32Array;
  /** Number of the round. */
  readonly round: number;
  /** Digest of the global weights that it started from. */
  readonly base: string;
}

/** What a job leaves on the device from one round to the next. */
export interface InnerState {
  /** Optimizer steps behind the moments, for AdamW's bias correction. */
  readonly steps: number;
  /** The optimizer's moments [parameters], empty for those it has not; undefined if the job does not keep them. */
  readonly moments: { readonly m: Float32Array; readonly v: Float32Array } | undefined;
  /** What the codec lost so far [parameters]; undefined without error feedback. */
  readonly residual: Float32Array | undefined;
  /** Undefined unless the job's rounds synchronise fragments. */
  readonly local?: LocalWeights | undefined;
  /** SCAFFOLD: the device's own control variate [parameters]; undefined unless the job keeps them. */
  readonly control?: Float32Array | undefined;
}

interface Header {
  steps: number;
  /** Bytes of m and v; null if they are not kept. */
  moments: [number, number] | null;
  /** Bytes; null if there is none. */
  residual: number | null;
  /** Absent in states of jobs that keep none. */
  local?: { bytes: number; round: number; base: string } | undefined;
  /** Bytes; absent in states of jobs without control variates. */
  control?: number | undefined;
  digest: string;
}

const FLOAT_BYTES = 4;
const MAGIC = "shoal-inner-2\n";

/** Spaces that end a header's line, so that the vectors behind it begin at a multiple of their values' size. */
const padding = (length: number): string => " ".repeat((FLOAT_BYTES - (length % FLOAT_BYTES)) % FLOAT_BYTES);

/**
 * Bytes of a state: magic, one line of JSON, then the vectors as little-endian fp32, which are the state's own where possible: a
 * device may not have memory for them twice.
 */
export function encodeInnerState(state: InnerState): Uint8Array[] {
  const { moments, residual, local, control } = state;
  const vectors = [moments?.m, moments?.v, residual, local?.weights, control].filter((vector) => vector !== undefined);
  const parts = vectors.map(viewBytes);
  const header: Header = {
    steps: state.steps,
    moments: moments === undefined ? null : [moments.m.byteLength, moments.v.byteLength],
    residual: residual?.byteLength ?? null,
    local: local && { bytes: local.weights.byteLength, round: local.round, base: local.base },
    control: control?.byteLength,
    digest: sha256Digest(...parts),
  };
  const line = `${MAGIC}${JSON.stringify(header)}`;
  return [new TextEncoder().encode(`${line}${padding(line.length + 1)}\n`), ...parts];
}

const isSize = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;

function isLocal(value: unknown): boolean {
  if (value === undefined) return true;
  if (typeof value !== "object" || value === null) return false;
  const { bytes, round, base } = value as Record<string, unknown>;
  return isSize(bytes) && isSize(round) && typeof base === "string";
}

function isHeader(value: unknown): value is Header {
  if (typeof value !== "object" || value === null) return false;
  const { steps, moments, residual, local, control, digest } = value as Partial<Record<keyof Header, unknown>>;
  const pair = Array.isArray(moments) && moments.length === 2 && moments.every(isSize);
  return (
    typeof steps === "number" &&
    (moments === null || pair) &&
    (residual === null || isSize(residual)) &&
    isLocal(local) &&
    (control === undefined || isSize(control)) &&
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

/** The state in these bytes, of which its vectors are views where possible; undefined if they are damaged. */
export function decodeInnerState(bytes: Uint8Array): InnerState | undefined {
  const parsed = parseHeader(bytes);
  if (parsed === undefined) return undefined;
  const { header, body } = parsed;
  if (sha256Digest(body) !== header.digest) return undefined;
  const [m = 0, v = 0] = header.moments ?? [];
  const { residual, local, control } = header;
  const sizes = [m, v, residual ?? 0, local?.bytes ?? 0, control ?? 0];
  if (sizes.reduce((sum, size) => sum + size, 0) !== body.length) return undefined;
  if (sizes.some((size) => size % FLOAT_BYTES !== 0)) return undefined;
  const vector = (offset: number, bytes: number): Float32Array => viewFloats(body.subarray(offset, offset + bytes));
  const own = vector(m + v + (residual ?? 0), local?.bytes ?? 0);
  return {
    steps: header.steps,
    moments: header.moments === null ? undefined : { m: vector(0, m), v: vector(m, v) },
    residual: residual === null ? undefined : vector(m + v, residual),
    ...(local === undefined ? {} : { local: { weights: own, round: local.round, base: local.base } }),
    ...(control === undefined ? {} : { control: vector(body.length - control, control) }),
  };
}
