import { sha256Digest } from "#common/tensor/digest.js";
import { fromBytes, toBytes } from "#common/tensor/flat.js";

/** What a job leaves on the device from one round to the next. */
export interface InnerState {
  /** Optimizer steps behind the moments, for AdamW's bias correction. */
  readonly steps: number;
  /** AdamW's moments [parameters]; undefined if the job does not keep them. */
  readonly moments: { readonly m: Float32Array; readonly v: Float32Array } | undefined;
  /** What the codec lost so far [parameters]; undefined without error feedback. */
  readonly residual: Float32Array | undefined;
}

interface Header {
  steps: number;
  moments: boolean;
  residual: boolean;
  digest: string;
}

const MAGIC = "shoal-inner-1\n";

/** Bytes of a state: magic, one line of JSON, then the vectors as little-endian fp32. */
export function encodeInnerState(state: InnerState): Uint8Array[] {
  const vectors = [state.moments?.m, state.moments?.v, state.residual].filter((vector) => vector !== undefined);
  const parts = vectors.map(toBytes);
  const header: Header = {
    steps: state.steps,
    moments: state.moments !== undefined,
    residual: state.residual !== undefined,
    digest: sha256Digest(...parts),
  };
  return [new TextEncoder().encode(`${MAGIC}${JSON.stringify(header)}\n`), ...parts];
}

function isHeader(value: unknown): value is Header {
  if (typeof value !== "object" || value === null) return false;
  const fields = value as Partial<Record<keyof Header, unknown>>;
  return (
    typeof fields.steps === "number" &&
    typeof fields.moments === "boolean" &&
    typeof fields.residual === "boolean" &&
    typeof fields.digest === "string"
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
  const vectors = (header.moments ? 2 : 0) + (header.residual ? 1 : 0);
  if (sha256Digest(body) !== header.digest) return undefined;
  const sizeBytes = vectors === 0 ? 0 : body.length / vectors;
  const vector = (index: number): Float32Array => fromBytes(body.subarray(index * sizeBytes, (index + 1) * sizeBytes));
  return {
    steps: header.steps,
    moments: header.moments ? { m: vector(0), v: vector(1) } : undefined,
    residual: header.residual ? vector(vectors - 1) : undefined,
  };
}
