import type { RoundSpec } from "#proto/shoal/v1/round.js";
import { ownRecord } from "../domain/own-record.js";
import { roundName } from "../domain/resources.js";
import { earlierNumbers, type EarlierRound } from "../domain/staleness.js";
import type { ResourceStore } from "../ports/resource-store.js";

/** The earlier rounds whose updates a round may fold, the oldest first, with what was judged of them; none if it is not asynchronous. */
export async function readEarlier(
  store: ResourceStore,
  spec: Pick<RoundSpec, "job" | "number" | "maxStaleness">,
): Promise<EarlierRound[]> {
  const found = await Promise.all(
    earlierNumbers(spec).map(async (number): Promise<EarlierRound[]> => {
      const name = roundName(spec.job, number);
      const [round, tally] = await Promise.all([store.get("Round", name), store.get("UpdateTally", name)]);
      return round === undefined ? [] : [{ round, tally: ownRecord(round, tally) }];
    }),
  );
  return found.flat();
}
