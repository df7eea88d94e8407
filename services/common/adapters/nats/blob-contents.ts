import { StoredBlob } from "#proto/shoal/v1/meta.js";
import type { StoreContents, StoredEntry } from "../../ports/blob-store.js";
import type { NatsLink } from "./connection.js";
import { readStored } from "./direct.js";
import { STREAMS } from "./streams.js";

const STAGE = /^shoal\.blob\.stage\.([^.]+)\./;
const PIECE = /^shoal\.blob\.[0-9a-f]{64}\.(\d+)$/;
const OF_BLOB = /^shoal\.blob\.([0-9a-f]{64})\./;
const READS_AT_ONCE = 16;

/** The references that are there of these digests: a consumer that reads them all may miss what is rewritten meanwhile. */
async function readReferences(link: NatsLink, hexes: readonly string[]): Promise<StoredEntry[]> {
  const entries: StoredEntry[] = [];
  for (let first = 0; first < hexes.length; first += READS_AT_ONCE) {
    const some = hexes.slice(first, first + READS_AT_ONCE);
    const read = some.map((hex) => readStored(link, STREAMS.blobs, { lastOf: `shoal.blob.${hex}.ref` }));
    for (const stored of await Promise.all(read)) {
      if (stored === undefined || stored.data.length === 0) continue;
      const { digest, sizeBytes, staged } = StoredBlob.decode(stored.data);
      entries.push({ digest, sizeBytes, staged, version: stored.seq });
    }
  }
  return entries;
}

async function subjectsOf(link: NatsLink, filter: string): Promise<string[]> {
  const { streams } = await link.manager();
  const { state } = await link.call(() => streams.info(STREAMS.blobs, { subjects_filter: filter }));
  return Object.keys(state.subjects ?? {});
}

/** Numbers of the pieces that lie under this digest. */
export async function pieceNumbers(link: NatsLink, hex: string): Promise<ReadonlySet<number>> {
  const names = await subjectsOf(link, `shoal.blob.${hex}.*`);
  return new Set(names.flatMap((name) => PIECE.exec(name)?.[1] ?? []).map(Number));
}

/**
 * What the stream BLOBS holds. Subjects first and references afterwards: of a put that ends in between, the blob is seen and not
 * pieces without one.
 */
export async function contentsOf(link: NatsLink): Promise<StoreContents> {
  const { streams } = await link.manager();
  // The head before everything else: whatever is written from here on is behind it.
  const { state } = await link.call(() => streams.info(STREAMS.blobs));
  const names = await subjectsOf(link, "shoal.blob.>");
  const blobs = await readReferences(link, [...new Set(names.flatMap((name) => OF_BLOB.exec(name)?.[1] ?? []))]);
  const digests = new Set(blobs.map(({ digest }) => digest));
  const owned = new Set(blobs.map(({ staged }) => staged));
  const stages = new Set(names.flatMap((name) => STAGE.exec(name)?.[1] ?? []));
  // What marks a blob as collected counts too.
  const partial = new Set(names.flatMap((name) => OF_BLOB.exec(name)?.[1] ?? []).map((hex) => `sha256:${hex}`));
  return {
    blobs,
    stages: [...stages].filter((name) => !owned.has(name)),
    partial: [...partial].filter((digest) => !digests.has(digest)),
    bytes: state.bytes,
    version: state.last_seq,
  };
}
