import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { readPayload } from "#common/runtime/payload.js";
import { openDigest, sha256Digest } from "#common/tensor/digest.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { AggregationError } from "./failure.js";
import { foldShard, gramOfShard, planFold, shardsOf, taskOf, type FoldPlan, type FoldPorts } from "./fold-round.js";
import { sumGrams } from "./gram.js";
import type { Heritage } from "./lineage.js";
import { readFolded } from "./logged-commits.js";
import { againstSums, corrupt, type AcceptedUpdate } from "./log-source.js";
import { openShardSums, stateParts, type Shard } from "./shards.js";
import type { Gram } from "./strategies/strategy.js";

/** What a round comes to; `outerDigest` is empty for a strategy without state, `deltaDigest` where no change is encoded. */
export interface Replayed {
  weightsDigest: string;
  outerDigest: string;
  deltaDigest: string;
}

/** Whether a replay came to what was published. */
export function isReplayOf(replayed: Replayed, { weights, outerState, delta }: Heritage): boolean {
  const { weightsDigest, outerDigest, deltaDigest } = replayed;
  return weightsDigest === weights && outerDigest === outerState && deltaDigest === delta;
}

/** Folds shard after shard. Holds the outer state, but never the weights. */
async function digestsOf(ports: FoldPorts, plan: FoldPlan): Promise<Replayed> {
  const grams: Gram[] = [];
  if (plan.needsGram) for (const shard of plan.shards) grams.push(await gramOfShard(ports, plan, shard));
  const weights = openDigest();
  const delta = openDigest();
  const states: Uint8Array[][] = [];
  for (const shard of plan.shards) {
    const folded = await foldShard(ports, plan, shard, plan.needsGram ? sumGrams(grams) : undefined);
    weights.add(folded.weights);
    for (const chunk of folded.delta) delta.add(chunk);
    states.push(folded.state);
  }
  const state = stateParts(plan.shape, plan.shards).map(({ shard, piece }) => states[shard]?.[piece] as Uint8Array);
  return {
    weightsDigest: weights.finish(),
    outerDigest: state.length === 0 ? "" : sha256Digest(...state),
    deltaDigest: plan.down === undefined ? "" : delta.finish(),
  };
}

/** Holds the chunks of all shards, read in their order, against the digest of the update. */
function againstDigest(manifest: UpdateManifest, shards: readonly Shard[]): AcceptedUpdate["check"] {
  const digest = openDigest();
  return ({ index }) => ({
    add: (bytes) => {
      digest.add(bytes);
    },
    holds: () => index < shards.length - 1 || digest.finish() === manifest.digest,
  });
}

/** The updates of a plan that takes more than one pass over them, or their norms: read once beforehand. */
async function judgeAgain({ log }: FoldPorts, { codec, shards, updates }: FoldPlan): Promise<AcceptedUpdate[]> {
  const judged: AcceptedUpdate[] = [];
  for (const { manifest, staleness } of updates) {
    const sums = openShardSums(shards);
    const facts = await readPayload(log, manifest, codec, (start, { checksum }) => {
      sums.add(start, checksum);
    });
    if (!facts.ok || facts.digest !== manifest.digest) throw corrupt(manifest);
    judged.push({ manifest, norm: facts.norm, staleness, check: againstSums(sums.finish()) });
  }
  return judged;
}

/**
 * Computes again what a round came to, from its starting weights, its outer state and the update log, with the code
 * the aggregator itself folds with; the tally and the result are not looked at and nothing is written. Equal digests
 * show that the disturbed run folded exactly this set in this order.
 *
 * Throws code "LOG_CORRUPT" if the log no longer holds a commit of the fold set, as after retention, or not what it commits.
 */
export async function replayRound(ports: FoldPorts & { store: ResourceStore }, name: string): Promise<Replayed> {
  const round = await ports.store.get("Round", name);
  if (round?.spec === undefined) throw new InvariantError(`there is no round ${name}`);
  const { spec } = round;
  if (spec.evaluationOnly) {
    const weightsDigest = taskOf(spec).weights?.digest ?? "";
    return { weightsDigest, outerDigest: spec.outerState?.digest ?? "", deltaDigest: "" };
  }
  const job = await ports.store.get("TrainingJob", spec.job);
  const strategy = job?.spec?.strategy;
  if (strategy === undefined) throw new InvariantError(`there is no strategy for round ${name}`);
  const foldSet = round.status?.foldSet ?? [];
  const logged = await readFolded(ports.log, { name, spec, entries: foldSet });
  const accepted: AcceptedUpdate[] = [];
  for (const { device, commitSeq, staleness } of foldSet) {
    const commit = logged.get(commitSeq);
    const manifest = commit?.device === device ? commit.manifest : undefined;
    if (manifest === undefined) {
      throw new AggregationError("LOG_CORRUPT", `the log holds no commit ${commitSeq} of ${device}`);
    }
    accepted.push({ manifest, norm: 0, staleness, check: againstDigest(manifest, shardsOf(spec)) });
  }
  const plan = planFold(spec, strategy, accepted);
  const readsOnce = !plan.needsGram && strategy.normBound === 0;
  return digestsOf(ports, readsOnce ? plan : { ...plan, updates: await judgeAgain(ports, plan) });
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
    return { weightsDigest: "", outerDigest: "", deltaDigest: "", damage: error.message };
  }
}
