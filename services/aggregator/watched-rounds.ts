import type { Round, RoundSpec } from "#proto/shoal/v1/round.js";
import { CLOSED } from "#common/domain/round-phase.js";

/** Closed rounds of a job that are still looked at, for commits that come late and a purge that a crash cut off. */
const LEAST_WATCHED = 3;

/**
 * How far behind a job's newest round a closed one is still looked at: later rounds may wait for its updates, and its log stays
 * with theirs. 0 retained rounds keep every log.
 */
export function watchedRounds({ maxStaleness }: Pick<RoundSpec, "maxStaleness">, retainRounds: number): number {
  return maxStaleness + Math.max(retainRounds, LEAST_WATCHED);
}

/**
 * Which rounds are worth a look, for a source of keys: every open one, and the newest closed ones of each job, so that
 * a resync stays small however long the jobs have run. Remembers the newest number of each job it was shown.
 */
export function roundKeys(retainRounds: number): (name: string, round: Round | undefined) => string[] {
  const newest = new Map<string, number>();
  return (name, round) => {
    if (round?.spec === undefined) {
      // A job that is applied again under its name counts from one.
      newest.delete(name.replace(/-\d+$/, ""));
      return [];
    }
    const { job, number } = round.spec;
    const last = Math.max(number, newest.get(job) ?? 0);
    newest.set(job, last);
    const isClosed = CLOSED.has(round.status?.phase ?? "");
    return isClosed && last - number > watchedRounds(round.spec, retainRounds) ? [] : [name];
  };
}
