import type { UpdateManifest, Verdict } from "#proto/shoal/v1/round.js";
import { withoutChunks } from "#common/domain/accept.js";
import type { CommitRecord, UpdateLog } from "#common/ports/update-log.js";
import { AggregationError } from "./failure.js";
import { isSameManifest } from "./lineage.js";

/** Commits under way at once. */
const AT_ONCE = 16;

/** The commits of a round at these sequences, as far as the log holds them. */
export async function readCommits(
  log: UpdateLog,
  round: string,
  seqs: readonly number[],
): Promise<Map<number, CommitRecord>> {
  const found = new Map<number, CommitRecord>();
  for (let first = 0; first < seqs.length; first += AT_ONCE) {
    const page = await Promise.all(seqs.slice(first, first + AT_ONCE).map((seq) => log.readCommit(seq)));
    for (const commit of page) if (commit?.round === round) found.set(commit.seq, commit);
  }
  return found;
}

/**
 * The manifests of accepted updates with the sequences of their chunks, which verdicts do not keep. Throws code "LOG_CORRUPT"
 * if the log does not hold a commit, or not as it was judged.
 * @param accepted verdicts of commits of this round.
 */
export async function readManifests(
  log: UpdateLog,
  round: string,
  accepted: readonly Verdict[],
): Promise<UpdateManifest[]> {
  const commits = await readCommits(
    log,
    round,
    accepted.map(({ commitSeq }) => commitSeq),
  );
  return accepted.map(({ commitSeq, manifest: judged }) => {
    const manifest = commits.get(commitSeq)?.manifest;
    if (
      manifest === undefined ||
      judged === undefined ||
      !isSameManifest(withoutChunks(manifest), withoutChunks(judged))
    ) {
      const device = judged?.device ?? "";
      throw new AggregationError(
        "LOG_CORRUPT",
        `the log does not hold commit ${commitSeq} of ${device} as it was judged`,
      );
    }
    return manifest;
  });
}
