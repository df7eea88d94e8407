import type { Round } from "#proto/shoal/v1/round.js";
import { codeOf, messageOf } from "#common/adapters/coded-error.js";
import { isDamage, withFailure } from "#common/domain/damage.js";
import { ownRecord } from "#common/domain/own-record.js";
import { UNFINISHED } from "#common/domain/round-phase.js";
import type { Clock } from "#common/ports/clock.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { clearEarlier } from "./earlier-record.js";
import { emptyTally } from "./tally.js";

/** What noting a failure reads and writes. */
export interface FailurePorts {
  store: ResourceStore;
  clock: Clock;
}

/**
 * Notes in the tally of an open round that something stored is damaged, which the scheduler makes a condition of the round
 * and, if it is final, the round's end. The fold set is frozen, so an update that is gone is never left out.
 * @param failed the round as it was read before it failed: what befell it says nothing of another of its name.
 * @returns whether it is final: nobody need try again.
 */
export async function noteFailure({ store, clock }: FailurePorts, failed: Round, error: unknown): Promise<boolean> {
  const code = codeOf(error);
  if (!isDamage(code)) return false;
  const { name = "", uid } = failed.metadata ?? {};
  for (;;) {
    const [round, stored] = await Promise.all([store.get("Round", name), store.get("UpdateTally", name)]);
    if (round?.spec === undefined || round.metadata?.uid !== uid) return false;
    if (!UNFINISHED.has(round.status?.phase ?? "Planning")) return false;
    const tally = ownRecord(round, stored);
    const failure = withFailure(tally?.failure, { code, message: messageOf(error) }, clock.nowMs());
    if (failure === tally?.failure) return failure.final;
    const written =
      tally === undefined
        ? await store.create("UpdateTally", { ...emptyTally(round), failure })
        : await store.update("UpdateTally", { ...tally, failure });
    if (written.ok) return failure.final;
    if (tally === undefined) await clearEarlier(store, "UpdateTally", name, round);
  }
}
