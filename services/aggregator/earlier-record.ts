import type { Round } from "#proto/shoal/v1/round.js";
import { ownRecord } from "#common/domain/own-record.js";
import type { ResourceStore } from "#common/ports/resource-store.js";

/**
 * Makes way for what is to be created of a round where an earlier round of its name left its own. Compare-and-set, so it may be
 * killed and run beside itself.
 * @returns whether creating is worth another try; false if the round has its own by now, or has itself given way to another of
 * its name, of which nothing may be touched.
 */
export async function clearEarlier(
  store: ResourceStore,
  kind: "UpdateTally" | "RoundResult" | "FoldShard",
  name: string,
  round: Round,
): Promise<boolean> {
  const left = await store.get(kind, name);
  if (ownRecord(round, left) !== undefined) return false;
  const { name: roundName = "", uid = "" } = round.metadata ?? {};
  // Read after the record: while the round is there none that comes after it has written anything.
  if ((await store.get("Round", roundName))?.metadata?.uid !== uid) return false;
  if (left !== undefined) await store.delete(kind, name, left.metadata?.resourceVersion);
  return true;
}
