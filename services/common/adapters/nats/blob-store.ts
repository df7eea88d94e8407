import { createHash } from "node:crypto";
import { BlobRef } from "#proto/shoal/v1/meta.js";
import { MAX_PIECE_BYTES } from "../../domain/subjects.js";
import type { BlobStore } from "../../ports/blob-store.js";
import { CodedError } from "../coded-error.js";
import type { NatsLink } from "./connection.js";
import { readStored } from "./direct.js";
import { STREAMS } from "./streams.js";

/** Pieces in flight at once, per call: enough to keep a link busy, little enough to bound memory. */
const IN_FLIGHT = 4;
const DIGEST = /^sha256:([0-9a-f]{64})$/;

/**
 * BlobStore on the stream BLOBS: piece n of a blob under `shoal.blob.<hex>.<n>`, and, written last, its BlobRef under
 * `shoal.blob.<hex>.ref`, without which the blob does not exist. Writing twice writes the same bytes.
 */
export class NatsBlobStore implements BlobStore {
  constructor(private readonly link: NatsLink) {}

  async put(bytes: Uint8Array): Promise<BlobRef> {
    const hex = createHash("sha256").update(bytes).digest("hex");
    const ref: BlobRef = { digest: `sha256:${hex}`, sizeBytes: bytes.length };
    if ((await this.stat(ref.digest)) !== undefined) return ref;
    const js = this.link.jetstream();
    await forEachInFlight(pieceCount(bytes.length), async (piece) => {
      const data = bytes.subarray(piece * MAX_PIECE_BYTES, (piece + 1) * MAX_PIECE_BYTES);
      await this.link.call(() => js.publish(`shoal.blob.${hex}.${piece}`, data, { timeout: 10_000 }));
    });
    await this.link.call(() => js.publish(`shoal.blob.${hex}.ref`, BlobRef.encode(ref).finish(), { timeout: 10_000 }));
    return ref;
  }

  async stat(digest: string): Promise<BlobRef | undefined> {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) return undefined;
    const stored = await readStored(this.link, STREAMS.blobs, { lastOf: `shoal.blob.${hex}.ref` });
    return stored && BlobRef.decode(stored.data);
  }

  async get(digest: string): Promise<Uint8Array | undefined> {
    const ref = await this.stat(digest);
    if (ref === undefined) return undefined;
    const bytes = await this.getRange(digest, 0, ref.sizeBytes);
    if (bytes === undefined) return undefined;
    if (`sha256:${createHash("sha256").update(bytes).digest("hex")}` !== digest)
      throw new CodedError("BLOB_CORRUPT", `blob ${digest} does not hash to its name`);
    return bytes;
  }

  async getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    const ref = await this.stat(digest);
    const hex = DIGEST.exec(digest)?.[1];
    if (ref === undefined || hex === undefined) return undefined;
    const end = Math.min(offset + length, ref.sizeBytes);
    if (offset >= end) return new Uint8Array(0);
    const range = new Uint8Array(end - offset);
    const first = Math.floor(offset / MAX_PIECE_BYTES);
    const last = Math.floor((end - 1) / MAX_PIECE_BYTES);
    await forEachInFlight(last - first + 1, async (index) => {
      const piece = first + index;
      const stored = await readStored(this.link, STREAMS.blobs, { lastOf: `shoal.blob.${hex}.${piece}` });
      const startsAt = piece * MAX_PIECE_BYTES;
      const wanted = Math.min(MAX_PIECE_BYTES, ref.sizeBytes - startsAt);
      if (stored?.data.length !== wanted)
        throw new CodedError("BLOB_CORRUPT", `piece ${piece} of blob ${digest} is missing or cut`);
      const from = Math.max(0, offset - startsAt);
      const to = Math.min(wanted, end - startsAt);
      range.set(stored.data.subarray(from, to), startsAt + from - offset);
    });
    return range;
  }

  async delete(digest: string): Promise<void> {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) return;
    const { streams } = await this.link.manager();
    // The reference goes first: a crash in between leaves a blob that is absent, not one that is torn.
    await streams.purge(STREAMS.blobs, { filter: `shoal.blob.${hex}.ref` });
    await streams.purge(STREAMS.blobs, { filter: `shoal.blob.${hex}.>` });
  }
}

function pieceCount(sizeBytes: number): number {
  return Math.ceil(sizeBytes / MAX_PIECE_BYTES);
}

async function forEachInFlight(count: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, count) }, worker));
}
