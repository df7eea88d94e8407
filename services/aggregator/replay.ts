import type { ResourceStore } from "#common/ports/resource-store.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { AggregationError } from "./failure.js";
import { foldRound, taskOf, type FoldPorts } from "./fold-round.js";

/** What a round comes to; `outerDigest` is empty for a strategy without state. */
export interface Replayed {
  weightsDigest: string;
  outerDigest: string;
}

/**
 * Computes again what a round came to, from its starting weights, its outer state and the update log, with the code
 * the aggregator itself folds with; the tally and the result are not looked at and nothing is written. Equal digests
 * show that the disturbed run folded exactly this set in this order.
 *
 * Throws code "LOG_CORRUPT" if the log no longer holds a commit of the fold set, as after retention.
 */
export async function replayRound(ports: FoldPorts & { store: ResourceStore }, name: string): Promise<Replayed> {
  const round = await ports.store.get("Round", name);
  if (round?.spec === undefined) throw new InvariantError(`there is no round ${name}`);
  const { spec } = round;
  if (spec.evaluationOnly) {
    return { weightsDigest: taskOf(spec).weights?.digest ?? "", outerDigest: spec.outerState?.digest ?? "" };
  }
  const job = await ports.store.get("TrainingJob", spec.job);
  const strategy = job?.spec?.strategy;
  if (strategy === undefined) throw new InvariantError(`there is no strategy for round ${name}`);
  const logged = new Map((await ports.log.commits(name)).map((commit) => [commit.seq, commit]));
  const updates = (round.status?.foldSet ?? []).map(({ device, commitSeq }) => {
    const commit = logged.get(commitSeq);
    if (commit?.manifest === undefined || commit.device !== device) {
      throw new AggregationError("LOG_CORRUPT", `the log holds no commit ${commitSeq} of ${device}`);
    }
    return commit.manifest;
  });
  const { weights, outerState } = await foldRound(ports, spec, strategy, updates);
  return {
    weightsDigest: sha256Digest(weights),
    outerDigest: outerState === undefined ? "" : sha256Digest(outerState),
  };
}

/** A replay of a round whose log and blobs may be damaged. */
export interface ReplayAttempt extends Replayed {
  /** Why it could not be computed; empty if it was. */
  damage: string;
}

/** Codes of failures that say what is stored is not what was, and trying again would not help. */
const DAMAGES: ReadonlySet<unknown> = new Set(["LOG_CORRUPT", "BLOB_MISSING", "BLOB_CORRUPT", "BROKEN_INVARIANT"]);

/** The same for whoever wants to know and not to act on it: damage is told, other failures are thrown. */
export async function replayOrDamage(
  ports: FoldPorts & { store: ResourceStore },
  name: string,
): Promise<ReplayAttempt> {
  try {
    return { ...(await replayRound(ports, name)), damage: "" };
  } catch (error) {
    const isDamage = error instanceof Error && "code" in error && DAMAGES.has(error.code);
    if (!isDamage) throw error;
    return { weightsDigest: "", outerDigest: "", damage: error.message };
  }
}
