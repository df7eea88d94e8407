import { codeOf, messageOf } from "#common/adapters/coded-error.js";
import { isDamage, withFailure } from "#common/domain/damage.js";
import { UNFINISHED } from "#common/domain/round-phase.js";
import type { Clock } from "#common/ports/clock.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { emptyTally } from "./tally.js";

/** What noting a failure reads and writes. */
export interface FailurePorts {
  store: ResourceStore;
  clock: Clock;
}

/**
 * Notes in the tally of an open round that something stored is damaged, which the scheduler makes a condition of the round
 * and, if it is final, the round's end. The fold set is frozen, so an update that is gone is never left out.
 * @returns whether it is final: nobody need try again.
 */
export async function noteFailure({ store, clock }: FailurePorts, name: string, error: unknown): Promise<boolean> {
  const code = codeOf(error);
  if (!isDamage(code)) return false;
  for (;;) {
    const [round, tally] = await Promise.all([store.get("Round", name), store.get("UpdateTally", name)]);
    if (round?.spec === undefined || !UNFINISHED.has(round.status?.phase ?? "Planning")) return false;
    const failure = withFailure(tally?.failure, { code, message: messageOf(error) }, clock.nowMs());
    if (failure === tally?.failure) return failure.final;
    const written =
      tally === undefined
        ? await store.create("UpdateTally", { ...emptyTally(name, round.spec.job), failure })
        : await store.update("UpdateTally", { ...tally, failure });
    if (written.ok) return failure.final;
  }
}
