import type { CommitRecord, UpdateLog } from "#common/ports/update-log.js";

/** The commits of a round at these sequences, as far as the log holds them. Reads it page by page and keeps no others. */
export async function readCommits(
  log: UpdateLog,
  round: string,
  seqs: readonly number[],
): Promise<Map<number, CommitRecord>> {
  const wanted = new Set(seqs);
  const found = new Map<number, CommitRecord>();
  for (let afterSeq = 0; found.size < wanted.size;) {
    const page = await log.commits(round, afterSeq);
    for (const commit of page) if (wanted.has(commit.seq)) found.set(commit.seq, commit);
    const last = page.at(-1);
    if (last === undefined) break;
    afterSeq = last.seq;
  }
  return found;
}
