import type { FoldEntry, RoundSpec, UpdateManifest, Verdict } from "#proto/shoal/v1/round.js";
import { withoutChunks } from "#common/domain/accept.js";
import { roundName } from "#common/domain/resources.js";
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

/** What a round folds: its name, its place in the job, and entries of its fold set. */
interface Folding<T> {
  readonly name: string;
  readonly spec: Pick<RoundSpec, "job" | "number">;
  readonly entries: readonly T[];
}

/** The commits that a round folds, as far as the log holds them: a stale one lies under the round it began in. */
export async function readFolded(
  log: UpdateLog,
  { name, spec, entries }: Folding<Pick<FoldEntry, "commitSeq" | "staleness">>,
): Promise<Map<number, CommitRecord>> {
  const found = new Map<number, CommitRecord>();
  for (const staleness of new Set(entries.map((entry) => entry.staleness))) {
    const seqs = entries.filter((entry) => entry.staleness === staleness).map(({ commitSeq }) => commitSeq);
    const origin = staleness === 0 ? name : roundName(spec.job, spec.number - staleness);
    for (const [seq, commit] of await readCommits(log, origin, seqs)) found.set(seq, commit);
  }
  return found;
}

/**
 * The manifests of accepted updates with the sequences of their chunks, which verdicts do not keep. Throws code "LOG_CORRUPT"
 * if the log does not hold a commit, or not as it was judged.
 * @param folding verdicts on commits that a round folds.
 */
export async function readManifests(log: UpdateLog, folding: Folding<Verdict>): Promise<UpdateManifest[]> {
  const commits = await readFolded(log, folding);
  return folding.entries.map(({ commitSeq, manifest: judged }) => {
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
