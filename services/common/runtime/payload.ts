import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { PayloadFacts } from "../domain/accept.js";
import type { Refusal } from "../domain/refusal.js";
import type { Digests, DigestTask } from "../ports/digests.js";
import type { Chunk, UpdateLog } from "../ports/update-log.js";
import { chunkRange } from "../tensor/chunk.js";
import type { Codec, DecodeRefusal } from "../tensor/codec.js";
import { inspectChunk } from "../tensor/kernels/kernels.js";
import { openUpdates } from "./chunk-reader.js";
import { inlineDigests } from "./inline-digests.js";

type Bad = { ok: false; refusal: Refusal };

const bad = (message: string, reason: Refusal["reason"] = "BadPayload"): Bad => ({
  ok: false,
  refusal: { reason, message },
});

/** Why these bytes are no chunk of the update's codec. */
const badBytes = (index: number, reason: DecodeRefusal): Bad =>
  bad(`chunk ${index}: ${reason}`, reason === "WrongLength" ? "WrongShape" : "NotFinite");

/** The bytes of what was read for chunk `index` of a screened manifest, or why it cannot be part of it. */
export function ownBytes(
  chunk: Chunk | undefined,
  manifest: UpdateManifest,
  index: number,
): { ok: true; bytes: Uint8Array } | Bad {
  const seq = manifest.chunkSeqs[index] ?? 0;
  if (chunk?.device !== manifest.device || chunk.round !== manifest.round) {
    return bad(`chunk ${index}: the log has none of this device and round at sequence ${seq}`);
  }
  return { ok: true, bytes: chunk.bytes };
}

/** A chunk as the log has it, and its checksum. */
export interface TakenChunk {
  readonly bytes: Uint8Array;
  readonly checksum: number;
}

/** Of several updates: what a reader does with the chunks whose values belong at index `start`; undefined for those that are bad or over. */
export type OnChunks = (start: number, chunks: readonly (TakenChunk | undefined)[]) => void;

/** A screened manifest and what hands out its next chunk. */
export interface PayloadSource {
  readonly manifest: UpdateManifest;
  readonly next: () => Promise<Chunk | undefined>;
}

/** What is known of an update while it is read. */
class Payload {
  readonly #digest: DigestTask;
  /** What the digest has not read yet is not asked for again. */
  #digested: Promise<void> = Promise.resolve();
  #squares = 0;
  #bad: Bad | undefined;

  constructor(
    private readonly source: PayloadSource,
    private readonly codec: Codec,
    digests: Digests,
  ) {
    this.#digest = digests.open(source.manifest.sizeBytes);
  }

  /** Takes the next chunk; undefined behind the last, and once one was bad. */
  async take(index: number): Promise<TakenChunk | undefined> {
    const { manifest, next } = this.source;
    await this.#digested;
    if (this.#bad !== undefined || index >= manifest.chunkSeqs.length) return undefined;
    const chunk = ownBytes(await next(), manifest, index);
    if (!chunk.ok) {
      this.#bad = chunk;
      return undefined;
    }
    this.#digested = this.#digest.add(chunk.bytes);
    // Who takes the next chunk, or asks for the facts, sees the failure.
    this.#digested.catch(() => undefined);
    const { start, end } = chunkRange(manifest.values, this.codec, index);
    const inspected = inspectChunk(this.codec, chunk.bytes, end - start);
    if (!inspected.ok) {
      this.#bad = badBytes(index, inspected.reason);
      return undefined;
    }
    this.#squares += inspected.squares;
    return { bytes: chunk.bytes, checksum: inspected.checksum };
  }

  async facts(): Promise<PayloadFacts> {
    await this.#digested;
    if (this.#bad !== undefined) return this.#bad;
    return { ok: true, digest: await this.#digest.finish(), norm: Math.sqrt(this.#squares) };
  }

  close(): void {
    this.#digest.drop();
  }
}

/**
 * Takes the chunks of updates of equal length, in order and abreast, and hands them to `onChunks`. The caller discards what it
 * was handed of an update whose facts do not hold.
 * @returns of each update the digest and L2 norm of what was read, or why it cannot be one. Throws on IO failures.
 */
export async function takePayloads(
  sources: readonly PayloadSource[],
  codec: Codec,
  digests: Digests,
  onChunks?: OnChunks,
): Promise<PayloadFacts[]> {
  const payloads = sources.map((source) => new Payload(source, codec, digests));
  const most = Math.max(...sources.map(({ manifest }) => manifest.chunkSeqs.length));
  try {
    for (let index = 0; index < most; index++) {
      const chunks = await Promise.all(payloads.map((payload) => payload.take(index)));
      if (chunks.every((chunk) => chunk === undefined)) break;
      onChunks?.(chunkRange(sources[0]?.manifest.values ?? 0, codec, index).start, chunks);
    }
    return await Promise.all(payloads.map((payload) => payload.facts()));
  } finally {
    for (const payload of payloads) payload.close();
  }
}

/** As `takePayloads` of one update, from the log, some chunks ahead. */
export async function readPayload(
  log: UpdateLog,
  manifest: UpdateManifest,
  codec: Codec,
  onChunk?: (start: number, chunk: TakenChunk) => void,
): Promise<PayloadFacts> {
  const { device, round, chunkSeqs, sizeBytes } = manifest;
  const update = openUpdates(log, [{ device, round, seqs: chunkSeqs, sizeBytes }]);
  try {
    const source = { manifest, next: () => update.next(0) };
    const [facts] = await takePayloads([source], codec, inlineDigests, (start, [chunk]) => {
      if (chunk !== undefined) onChunk?.(start, chunk);
    });
    return facts as PayloadFacts;
  } finally {
    await update.close();
  }
}
