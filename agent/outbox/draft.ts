import { UpdateManifest } from "#proto/shoal/v1/round.js";

/** A finished round on its way into the outbox. */
export interface UpdateDraft {
  /** Key of the job. */
  readonly job: string;
  /** Key of the round. */
  readonly key: string;
  /** Complete but for chunkSeqs. */
  readonly manifest: UpdateManifest;
  /** In order; none for an evaluation. */
  readonly chunks: readonly Uint8Array[];
}

/** A spooled update as it lies on disk, without its bytes. */
export interface SpoolEntry {
  /** Key of the job. */
  readonly job: string;
  /** Key of the round. */
  readonly key: string;
  readonly manifest: UpdateManifest;
  /** Bytes of each chunk in the payload, in order. */
  readonly chunkBytes: readonly number[];
  /** Of the payload, by which it is known again (`payload.ts`); entries of earlier agents have their digest alone. */
  readonly checksum?: number | undefined;
  /** From it the ids of all messages are made, so that a message sent again after a crash is known as the same. */
  readonly nonce: string;
}

const fields = ["job", "nonce", "chunkBytes", "manifest"] as const;

/** One line of JSON. */
export function encodeEntry(entry: SpoolEntry): Uint8Array {
  const manifest = UpdateManifest.toJSON(entry.manifest);
  return new TextEncoder().encode(`${JSON.stringify({ ...entry, manifest })}\n`);
}

/** The entry in these bytes; undefined if they are damaged. */
export function decodeEntry(bytes: Uint8Array): SpoolEntry | undefined {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    if (typeof value !== "object" || value === null || !fields.every((field) => field in value)) return undefined;
    const { job, nonce, chunkBytes, manifest } = value as Record<(typeof fields)[number], unknown>;
    // Entries of earlier agents have no key and were named by the round alone.
    const key: unknown = "key" in value ? value.key : UpdateManifest.fromJSON(manifest).round;
    if (typeof job !== "string" || typeof key !== "string" || typeof nonce !== "string" || nonce === "")
      return undefined;
    if (!Array.isArray(chunkBytes)) return undefined;
    if (!chunkBytes.every((size) => typeof size === "number" && Number.isInteger(size) && size > 0)) return undefined;
    const checksum: unknown = "checksum" in value ? value.checksum : undefined;
    if (checksum !== undefined && typeof checksum !== "number") return undefined;
    const described = { chunkBytes: chunkBytes as number[], checksum, manifest: UpdateManifest.fromJSON(manifest) };
    return { job, key, nonce, ...described };
  } catch {
    return undefined;
  }
}

/** What has been acknowledged: sequences of the first chunks, and whether the commit may have been sent. */
export interface Acks {
  readonly chunkSeqs: readonly number[];
  readonly commitSent: boolean;
}

const COMMIT_LINE = "commit";

export const encodeAck = (seq: number): Uint8Array => new TextEncoder().encode(`${seq}\n`);
export const encodeCommitSent = (): Uint8Array => new TextEncoder().encode(`${COMMIT_LINE}\n`);

/** Reads the acknowledged part of a file to which a crash may have added half a line or garbage: whole lines only. */
export function decodeAcks(bytes: Uint8Array | undefined): Acks {
  const lines = new TextDecoder()
    .decode(bytes ?? new Uint8Array(0))
    .split("\n")
    .slice(0, -1);
  const chunkSeqs: number[] = [];
  for (const line of lines) {
    if (line === COMMIT_LINE) return { chunkSeqs, commitSent: true };
    if (!/^[1-9]\d*$/.test(line)) break;
    chunkSeqs.push(Number(line));
  }
  return { chunkSeqs, commitSent: false };
}
