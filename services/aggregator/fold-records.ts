import type { FoldShard, Round } from "#proto/shoal/v1/round.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { clearEarlier } from "./earlier-record.js";

/** The passes of a fold over the log: inner products, where the strategy needs them, then weights and outer state. */
export type FoldPass = "gram" | "fold";

/** Which shards of a round are done, by index. */
export type FoldProgress = Readonly<Record<FoldPass, ReadonlyMap<number, FoldShard>>>;

const recordName = (round: string, pass: FoldPass, index: number): string => `${round}-${pass}${index}`;

/** Names of what a round's fold stages; its uid tells it from a round of the same name of another job. */
export const stagesOf = (
  uid: string,
): {
  weights: string;
  state: string;
  delta: string;
  gram: string;
  summedWeights: string;
  summedState: string;
} => ({
  weights: `weights-${uid}`,
  state: `state-${uid}`,
  delta: `delta-${uid}`,
  gram: `gram-${uid}`,
  // In other parts than those above.
  summedWeights: `summed-weights-${uid}`,
  summedState: `summed-state-${uid}`,
});

/** Every record of shards of this round's name, those of another round of that name included. */
async function recordsOf(store: ResourceStore, round: string): Promise<FoldShard[]> {
  return (await store.list("FoldShard", { labels: { round } })).items;
}

/** How far the fold of a round is. */
export async function readProgress(store: ResourceStore, round: Round): Promise<FoldProgress> {
  const { name = "", uid = "" } = round.metadata ?? {};
  const records = (await recordsOf(store, name)).filter((record) => record.roundUid === uid);
  const done = (pass: FoldPass): Map<number, FoldShard> =>
    new Map(records.filter((record) => record.pass === pass).map((record) => [record.index, record]));
  return { gram: done("gram"), fold: done("fold") };
}

/**
 * Notes that what a shard comes to is staged. A second note of the same says the same and is dropped; one of an earlier round
 * of the name gives way.
 */
export async function recordShard(
  store: ResourceStore,
  round: Round,
  pass: FoldPass,
  outcome: { index: number; squares: number; elapsedMs: number },
): Promise<void> {
  const { name = "", uid = "" } = round.metadata ?? {};
  const key = recordName(name, pass, outcome.index);
  const metadata = newMeta(key, { round: name, job: round.spec?.job ?? "" });
  const record: FoldShard = {
    apiVersion: API_VERSION,
    kind: "FoldShard",
    metadata,
    round: name,
    roundUid: uid,
    pass,
    ...outcome,
  };
  for (;;) {
    if ((await store.create("FoldShard", record)).ok) return;
    if (!(await clearEarlier(store, "FoldShard", key, round))) return;
  }
}

/** Takes back that a shard is done. */
export async function forgetShard(store: ResourceStore, round: Round, pass: FoldPass, index: number): Promise<void> {
  await store.delete("FoldShard", recordName(round.metadata?.name ?? "", pass, index));
}

/**
 * Deletes the records of a round, and those of earlier rounds of its name. One that has the name by now, because the job was
 * deleted and applied again while this replica was held up, keeps its own.
 * @param beforehand called with the uid of each round whose records go, so that what goes with them goes first.
 */
export async function clearRecords(
  store: ResourceStore,
  round: Round,
  beforehand: (uid: string) => Promise<void>,
): Promise<void> {
  const { name = "", uid: own = "" } = round.metadata ?? {};
  const records = await recordsOf(store, name);
  if (records.length === 0) return;
  // Read after the records: whoever wrote one and is not this round by now will not be again.
  const current = (await store.get("Round", name))?.metadata?.uid;
  const past = records.filter(({ roundUid }) => roundUid === own || roundUid !== current);
  for (const uid of new Set(past.map(({ roundUid }) => roundUid))) await beforehand(uid);
  for (const { metadata } of past) await store.delete("FoldShard", metadata?.name ?? "", metadata?.resourceVersion);
}
