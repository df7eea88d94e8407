import { createHash, randomUUID } from "node:crypto";
import { StoredBlob, type BlobRef } from "#proto/shoal/v1/meta.js";
import { MAX_PIECE_BYTES } from "../../domain/subjects.js";
import type { CollectableBlobs, StoreContents } from "../../ports/blob-store.js";
import { CodedError } from "../coded-error.js";
import { contentsOf, pieceNumbers } from "./blob-contents.js";
import { writeAfter } from "./conditional-write.js";
import type { NatsLink } from "./connection.js";
import { readFromLeader, readStored } from "./direct.js";
import { erase } from "./erasure.js";
import { STREAMS } from "./streams.js";

/** Pieces in flight at once, per call: enough to keep a link busy, little enough to bound memory. */
const IN_FLIGHT = 4;
const DIGEST = /^sha256:([0-9a-f]{64})$/;
const WRITE = { timeout: 10_000 };
/** A reference that says: no blob any more. */
const GONE = new Uint8Array();
/** Between tries to do what others do too. */
const RETRY_MS = 10;

/** Where a run of a blob's bytes lies: piece n of it under `<prefix>.<n>`. */
interface Run {
  prefix: string;
  sizeBytes: number;
}

/**
 * BlobStore on the stream BLOBS.
 *
 * - `shoal.blob.<hex>.<n>`: piece n of the blob of this digest, if it was put;
 * - `shoal.blob.<hex>.ref`: its StoredBlob, written last, without which the blob does not exist; nothing once it is collected;
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
    const stored = StoredBlob.fromPartial(ref);
    for (;;) {
      const { known, seq } = await this.touchOrPlace(hex);
      if (known !== undefined) return ref;
      await this.writePieces(`shoal.blob.${hex}`, bytes);
      // Who stood still for so long that pieces were collected, and the mark of that too, finds a reference as little as before.
      if (!(await this.holdsPieces(hex, bytes.length))) continue;
      // Else somebody else put it, or collected what was there: then it is absent, and the pieces may be gone too.
      if (await this.refer(hex, stored, seq)) return ref;
    }
  }

  async stat(digest: string): Promise<BlobRef | undefined> {
    const stored = await this.lookUp(digest);
    return stored && { digest: stored.digest, sizeBytes: stored.sizeBytes };
  }

  async touch(digest: string): Promise<BlobRef | undefined> {
    const hex = DIGEST.exec(digest)?.[1];
    const blob = hex === undefined ? undefined : (await this.touchOrPlace(hex)).known;
    return blob && { digest, sizeBytes: blob.sizeBytes };
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

  async stage(name: string, part: number, bytes: Uint8Array): Promise<void> {
    await this.writePieces(`shoal.blob.stage.${name}.${part}`, bytes);
  }

  async readStaged(name: string, part: number, sizeBytes: number): Promise<Uint8Array | undefined> {
    return this.read([{ prefix: `shoal.blob.stage.${name}.${part}`, sizeBytes }], 0, sizeBytes);
  }

  async seal(name: string, partBytes: readonly number[], digest: string): Promise<BlobRef> {
    const sizeBytes = partBytes.reduce((sum, bytes) => sum + bytes, 0);
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) throw new CodedError("BAD_DIGEST", `"${digest}" is no digest`);
    const stored = StoredBlob.fromPartial({ digest, sizeBytes, staged: name, partBytes: [...partBytes] });
    for (;;) {
      const { known, seq } = await this.touchOrPlace(hex);
      if (known !== undefined) return { digest, sizeBytes: known.sizeBytes };
      // Whoever drops staged content looks for its owner first, so the owner is there before the blob is.
      await this.write(`shoal.blob.stage.${name}.owner`, new TextEncoder().encode(digest));
      // Of two that seal the same bits the first is named: what the other staged may be dropped by now.
      if (await this.refer(hex, stored, seq)) return { digest, sizeBytes };
    }
  }

  async unstage(name: string): Promise<void> {
    const { streams } = await this.link.manager();
    // The head first: what is staged or sealed from here on is behind it.
    const { state } = await this.link.call(() => streams.info(STREAMS.blobs));
    // A copy that lags may not know yet that the content became a blob.
    const owner = await readFromLeader(this.link, STREAMS.blobs, { lastOf: `shoal.blob.stage.${name}.owner` });
    const hex = owner && DIGEST.exec(new TextDecoder().decode(owner.data))?.[1];
    const { blob } = hex === undefined ? {} : await this.readReference(hex, readFromLeader);
    if (blob?.staged !== name) await this.erase(`shoal.blob.stage.${name}.>`, state.last_seq);
  }

  contents(): Promise<StoreContents> {
    return contentsOf(this.link);
  }

  async collect(digest: string, version: number): Promise<boolean> {
    const hex = DIGEST.exec(digest)?.[1];
    const stored = await this.lookUp(digest);
    if (hex === undefined || stored?.seq !== version) return false;
    // Of whoever touches it now and this one, only one is first. (An erased reference would be no answer to the other: a cluster
    // lets a write pass that is to follow a message which is erased at the same time.)
    if (!(await this.writeReference(hex, GONE, version))) return false;
    // From here on it is absent, and who wants it writes all of it anew, behind this version.
    await this.erase(`shoal.blob.${hex}.>`, version);
    if (stored.staged !== "") await this.erase(`shoal.blob.stage.${stored.staged}.>`, version);
    // The mark stays until it is collected as what is left: servers that are killed now would come back with the reference before it.
    return true;
  }

  async collectPartial(digest: string, upToVersion: number): Promise<void> {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) return;
    const all = `shoal.blob.${hex}.>`;
    const last = await readFromLeader(this.link, STREAMS.blobs, { lastOf: all });
    if (last !== undefined && last.seq > upToVersion) return;
    const { blob, seq } = await this.readReference(hex);
    if (blob !== undefined) return;
    // Of a put that ends now and this one only one is first, as with a blob. Where no pieces are there is a mark, which holds up nobody.
    const { size: pieces } = await pieceNumbers(this.link, hex);
    if (pieces > 0 && !(await this.writeReference(hex, GONE, seq))) return;
    await this.erase(all, upToVersion);
  }

  private async lookUp(digest: string): Promise<(StoredBlob & { seq: number }) | undefined> {
    const hex = DIGEST.exec(digest)?.[1];
    const { blob, seq } = hex === undefined ? { blob: undefined, seq: 0 } : await this.readReference(hex);
    return blob && { ...blob, seq };
  }

  /** The last reference of a digest with its sequence, 0 for none. What it says is gone is no blob. */
  private async readReference(hex: string, read = readStored): Promise<{ blob?: StoredBlob; seq: number }> {
    const query = { lastOf: `shoal.blob.${hex}.ref` };
    const first = await read(this.link, STREAMS.blobs, query);
    // That a blob is gone may be what a lagging copy says of one that is there again.
    const isGone = first?.data.length === 0;
    const stored = isGone ? await readFromLeader(this.link, STREAMS.blobs, query) : first;
    if (stored === undefined) return { seq: 0 };
    return stored.data.length === 0 ? { seq: stored.seq } : { blob: StoredBlob.decode(stored.data), seq: stored.seq };
  }

  /** The blob, touched; if there is none, the sequence behind which its reference goes. One read says both. */
  private async touchOrPlace(hex: string): Promise<{ known?: StoredBlob; seq: number }> {
    for (;;) {
      const { blob, seq } = await this.readReference(hex);
      if (blob === undefined) return { seq };
      if (await this.refer(hex, blob, seq)) return { known: blob, seq };
      await this.link.clock.sleep(RETRY_MS);
    }
  }

  private refer(hex: string, blob: StoredBlob, lastSeq: number): Promise<boolean> {
    return this.writeReference(hex, StoredBlob.encode(blob).finish(), lastSeq);
  }

  /** Writes a reference behind the last one, of this sequence; false if somebody else was first. */
  private async writeReference(hex: string, data: Uint8Array, lastSeq: number): Promise<boolean> {
    const write = { stream: STREAMS.blobs, subject: `shoal.blob.${hex}.ref`, data, lastSeq };
    return (await writeAfter(this.link, write)) !== undefined;
  }

  /** Whether all pieces of a blob of this size lie under its digest. */
  private async holdsPieces(hex: string, sizeBytes: number): Promise<boolean> {
    const there = await pieceNumbers(this.link, hex);
    for (let n = 0; n * MAX_PIECE_BYTES < sizeBytes; n++) if (!there.has(n)) return false;
    return true;
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
    // An id of its own: nats-server 2.9 in a cluster may do last writes again after a crash, and refuses those whose id is there.
    await this.link.call(() => js.publish(subject, data, { ...WRITE, msgID: randomUUID() }));
  }

  private async erase(filter: string, upToSeq: number): Promise<void> {
    await erase(this.link, { stream: STREAMS.blobs, filter, upToSeq });
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
