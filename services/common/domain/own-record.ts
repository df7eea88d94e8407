import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round } from "#proto/shoal/v1/round.js";

/** What is stored of a round under its name: UpdateTally, RoundResult. */
interface RoundRecord {
  readonly roundUid: string;
}

/**
 * What is stored under a round's name, if it was written for this very round; every reader of a tally or a result asks. A job that
 * is deleted and applied again has rounds of the old names, and a replica that was held up in the middle of an old one may write
 * under them yet: that counts as absent, and gives way to whoever writes for the round. A record without a uid was written by a
 * version that did not say it, and is taken for the round's own, so that a fleet can be updated replica by replica.
 */
export function ownRecord<T extends RoundRecord>(round: Round | undefined, stored: T | undefined): T | undefined {
  if (round === undefined || stored === undefined) return undefined;
  return stored.roundUid === "" || stored.roundUid === round.metadata?.uid ? stored : undefined;
}

/** The job stored under the name that a round says, if the round was created for this very job: the same a step up. */
export function ownJob(round: Round, stored: TrainingJob | undefined): TrainingJob | undefined {
  const uid = round.spec?.task?.jobUid ?? "";
  return uid === "" || uid === stored?.metadata?.uid ? stored : undefined;
}
