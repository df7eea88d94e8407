import { createHash } from "node:crypto";
import { NatsError } from "nats";
import { StoredBlob, type BlobRef } from "#proto/shoal/v1/meta.js";
import { MAX_PIECE_BYTES } from "../../domain/subjects.js";
import type { CollectableBlobs, StoreContents } from "../../ports/blob-store.js";
import { CodedError } from "../coded-error.js";
import { contentsOf, countPieces } from "./blob-contents.js";
import type { NatsLink } from "./connection.js";
import { readStored } from "./direct.js";
import { STREAMS } from "./streams.js";

/** Pieces in flight at once, per call: enough to keep a link busy, little enough to bound memory. */
const IN_FLIGHT = 4;
const DIGEST = /^sha256:([0-9a-f]{64})$/;
const WRITE = { timeout: 10_000 };
/** Writing pieces for longer than this, a writer looks whether all are there still. Below every collector's grace. */
const SLOW_PUT_MS = 60_000;
const WRONG_LAST_SEQUENCE = 10071;

/** Where a run of a blob's bytes lies: piece n of it under `<prefix>.<n>`. */
interface Run {
  prefix: string;
  sizeBytes: number;
}

/**
 * BlobStore on the stream BLOBS.
 *
 * - `shoal.blob.<hex>.<n>`: piece n of the blob of this digest, if it was put;
 * - `shoal.blob.<hex>.ref`: its StoredBlob, written last, without which the blob does not exist;
 * - `shoal.blob.stage.<name>.<part>.<n>`: piece n of a part of staged content; a sealed blob's bytes stay there, and its
 *   StoredBlob names them;
 * - `shoal.blob.stage.<name>.owner`: digest of the blob which that content became, or is about to. Content without an owner,
 *   or whose owner's StoredBlob does not name it, belongs to a fold under way or to nobody.
 *
 * Writing twice writes the same bytes.
 */
export class NatsBlobStore implements CollectableBlobs {
  constructor(private readonly link: NatsLink) {}

  async put(bytes: Uint8Array): Promise<BlobRef> {
    const hex = createHash("sha256").update(bytes).digest("hex");
    const ref: BlobRef = { digest: `sha256:${hex}`, sizeBytes: bytes.length };
    if ((await this.touch(ref.digest)) !== undefined) return ref;
    await this.writeLasting(hex, bytes);
    await this.write(`shoal.blob.${hex}.ref`, StoredBlob.encode(StoredBlob.fromPartial(ref)).finish());
    return ref;
  }

  async stat(digest: string): Promise<BlobRef | undefined> {
    const stored = await this.lookUp(digest);
    return stored && { digest: stored.digest, sizeBytes: stored.sizeBytes };
  }

  async touch(digest: string): Promise<BlobRef | undefined> {
    for (;;) {
      const stored = await this.lookUp(digest);
      if (stored === undefined) return undefined;
      const { seq, ...blob } = stored;
      const subject = `shoal.blob.${digest.slice("sha256:".length)}.ref`;
      if (await this.writeAfter(seq, subject, StoredBlob.encode(blob).finish())) {
        return { digest, sizeBytes: blob.sizeBytes };
      }
    }
  }

  async get(digest: string): Promise<Uint8Array | undefined> {
    const stored = await this.lookUp(digest);
    if (stored === undefined) return undefined;
    const bytes = await this.readBlob(stored, 0, stored.sizeBytes);
    if (`sha256:${createHash("sha256").update(bytes).digest("hex")}` !== digest)
      throw new CodedError("BLOB_CORRUPT", `blob ${digest} does not hash to its name`);
    return bytes;
  }

  async getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    const stored = await this.lookUp(digest);
    return stored && this.readBlob(stored, offset, length);
  }

  async delete(digest: string): Promise<void> {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) return;
    const staged = (await this.lookUp(digest))?.staged ?? "";
    // The reference goes first: a crash in between leaves a blob that is absent, not one that is torn.
    await this.purge(`shoal.blob.${hex}.ref`);
    await this.purge(`shoal.blob.${hex}.>`);
    if (staged !== "") await this.purge(`shoal.blob.stage.${staged}.>`);
  }

  async stage(name: string, part: number, bytes: Uint8Array): Promise<void> {
    await this.writePieces(`shoal.blob.stage.${name}.${part}`, bytes);
  }

  async readStaged(name: string, part: number, sizeBytes: number): Promise<Uint8Array | undefined> {
    return this.read([{ prefix: `shoal.blob.stage.${name}.${part}`, sizeBytes }], 0, sizeBytes);
  }

  async seal(name: string, partBytes: readonly number[], digest: string): Promise<BlobRef> {
    const sizeBytes = partBytes.reduce((sum, bytes) => sum + bytes, 0);
    const hex = DIGEST.exec(digest)?.[1];
    for (;;) {
      const known = await this.touch(digest);
      if (known !== undefined) return known;
      if (hex === undefined) throw new CodedError("BAD_DIGEST", `"${digest}" is no digest`);
      // Whoever drops staged content looks for its owner first, so the owner is there before the blob is.
      await this.write(`shoal.blob.stage.${name}.owner`, new TextEncoder().encode(digest));
      const stored = StoredBlob.fromPartial({ digest, sizeBytes, staged: name, partBytes: [...partBytes] });
      // Of two that seal the same bits the first is named: what the other staged may be dropped by now.
      if (await this.writeAfter(0, `shoal.blob.${hex}.ref`, StoredBlob.encode(stored).finish()))
        return { digest, sizeBytes };
    }
  }

  async unstage(name: string): Promise<void> {
    const subject = `shoal.blob.stage.${name}.owner`;
    const owner = await readStored(this.link, STREAMS.blobs, { lastOf: subject });
    const blob = owner && (await this.lookUp(new TextDecoder().decode(owner.data)));
    if (blob?.staged !== name) await this.purge(`shoal.blob.stage.${name}.>`);
  }

  contents(): Promise<StoreContents> {
    return contentsOf(this.link);
  }

  async collect(digest: string, version: number): Promise<boolean> {
    const hex = DIGEST.exec(digest)?.[1];
    const stored = await this.lookUp(digest);
    if (hex === undefined || stored?.seq !== version) return false;
    // Whoever touches it now writes a later reference, which this purge leaves: then the blob stays.
    if ((await this.purge(`shoal.blob.${hex}.ref`, version)) === 0) return false;
    // From here on it is absent, and who wants it writes all of it anew, behind this version.
    await this.purge(`shoal.blob.${hex}.>`, version);
    if (stored.staged !== "") await this.purge(`shoal.blob.stage.${stored.staged}.>`, version);
    return true;
  }

  async collectPartial(digest: string, upToVersion: number): Promise<void> {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined || (await this.lookUp(digest)) !== undefined) return;
    await this.purge(`shoal.blob.${hex}.>`, upToVersion);
  }

  private async lookUp(digest: string): Promise<(StoredBlob & { seq: number }) | undefined> {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) return undefined;
    const stored = await readStored(this.link, STREAMS.blobs, { lastOf: `shoal.blob.${hex}.ref` });
    return stored && { ...StoredBlob.decode(stored.data), seq: stored.seq };
  }

  /** Pieces without a reference are collected once they have lain for long: a slow writer may have to write some again. */
  private async writeLasting(hex: string, bytes: Uint8Array): Promise<void> {
    const { clock } = this.link;
    for (;;) {
      const startedMs = clock.monotonicMs();
      await this.writePieces(`shoal.blob.${hex}`, bytes);
      if (clock.monotonicMs() - startedMs < SLOW_PUT_MS) return;
      if ((await countPieces(this.link, hex)) === Math.ceil(bytes.length / MAX_PIECE_BYTES)) return;
    }
  }

  private async readBlob(stored: StoredBlob, offset: number, length: number): Promise<Uint8Array> {
    const end = Math.min(offset + length, stored.sizeBytes);
    const bytes = offset >= end ? new Uint8Array(0) : await this.read(runsOf(stored), offset, end);
    if (bytes === undefined) throw new CodedError("BLOB_CORRUPT", `a piece of blob ${stored.digest} is missing or cut`);
    return bytes;
  }

  /** The bytes from `offset` to `end` of these runs, one after the other; undefined if a piece is missing or cut. */
  private async read(runs: readonly Run[], offset: number, end: number): Promise<Uint8Array | undefined> {
    const range = new Uint8Array(end - offset);
    const pieces = piecesOf(runs, offset, end);
    const read = { whole: true };
    await forEachInFlight(pieces.length, async (index) => {
      const { subject, start, size } = pieces[index] as Piece;
      const stored = read.whole ? await readStored(this.link, STREAMS.blobs, { lastOf: subject }, size) : undefined;
      if (stored?.data.length !== size) {
        read.whole = false;
        return;
      }
      const from = Math.max(0, offset - start);
      range.set(stored.data.subarray(from, Math.min(size, end - start)), start + from - offset);
    });
    return read.whole ? range : undefined;
  }

  private async writePieces(prefix: string, bytes: Uint8Array): Promise<void> {
    await forEachInFlight(Math.ceil(bytes.length / MAX_PIECE_BYTES), (piece) =>
      this.write(`${prefix}.${piece}`, bytes.subarray(piece * MAX_PIECE_BYTES, (piece + 1) * MAX_PIECE_BYTES)),
    );
  }

  private async write(subject: string, data: Uint8Array): Promise<void> {
    const js = this.link.jetstream();
    await this.link.call(() => js.publish(subject, data, WRITE));
  }

  /** Writes if the subject's last message is still of this sequence, 0 for none; else false. */
  private async writeAfter(lastSubjectSequence: number, subject: string, data: Uint8Array): Promise<boolean> {
    const js = this.link.jetstream();
    try {
      await this.link.call(() => js.publish(subject, data, { ...WRITE, expect: { lastSubjectSequence } }));
      return true;
    } catch (error) {
      if (error instanceof NatsError && error.api_error?.err_code === WRONG_LAST_SEQUENCE) return false;
      throw error;
    }
  }

  /** How many messages went; with a sequence only those up to it. */
  private async purge(filter: string, upToSeq?: number): Promise<number> {
    const { streams } = await this.link.manager();
    const selection = upToSeq === undefined ? { filter } : { filter, seq: upToSeq + 1 };
    return (await streams.purge(STREAMS.blobs, selection)).purged;
  }
}

interface Piece {
  subject: string;
  /** Where it begins in all the bytes. */
  start: number;
  size: number;
}

/** The pieces that hold bytes from `offset` to `end` of these runs, one run after the other. */
function piecesOf(runs: readonly Run[], offset: number, end: number): Piece[] {
  const pieces: Piece[] = [];
  let runStart = 0;
  for (const { prefix, sizeBytes } of runs) {
    const from = Math.max(0, Math.floor((offset - runStart) / MAX_PIECE_BYTES));
    const to = Math.ceil(Math.min(end - runStart, sizeBytes) / MAX_PIECE_BYTES);
    for (let n = from; n < to; n++) {
      const size = Math.min(MAX_PIECE_BYTES, sizeBytes - n * MAX_PIECE_BYTES);
      pieces.push({ subject: `${prefix}.${n}`, start: runStart + n * MAX_PIECE_BYTES, size });
    }
    runStart += sizeBytes;
  }
  return pieces;
}

function runsOf({ digest, sizeBytes, staged, partBytes }: StoredBlob): Run[] {
  if (staged === "") return [{ prefix: `shoal.blob.${digest.slice("sha256:".length)}`, sizeBytes }];
  return partBytes.map((bytes, part) => ({ prefix: `shoal.blob.stage.${staged}.${part}`, sizeBytes: bytes }));
}

async function forEachInFlight(count: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, count) }, worker));
}
