import type { CollectableBlobs } from "#common/ports/blob-store.js";

/** Takes a blob out of the store. */
export async function loseBlob(blobs: CollectableBlobs, digest = ""): Promise<void> {
  const entry = (await blobs.contents()).blobs.find((each) => each.digest === digest);
  if (entry === undefined) throw new Error(`there is no blob ${digest}`);
  if (!(await blobs.collect(digest, entry.version))) throw new Error(`blob ${digest} stays`);
}
