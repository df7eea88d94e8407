/** Rounds that are over and stay in the site's log: late looks, and people who want to see why. */
const KEPT_ROUNDS = 3;

/** Whether a name is that of an earlier round of the same job: rounds of a job follow one another, so that one is over for good. */
function isBefore(name: string, other: string): boolean {
  const [job, number] = [name.replace(/-\d+$/, ""), Number(/\d+$/.exec(name)?.[0])];
  return other.replace(/-\d+$/, "") === job && Number(/\d+$/.exec(other)?.[0]) > number;
}

/**
 * The round whose part of the site's log goes next: the oldest of too many, or, short of space, any that a later one of its job
 * follows. One that is merely not waited for may be planned again, and its members' updates count then.
 * @param over names of rounds that are not waited for, oldest first
 * @param open names of rounds that are
 */
export function dispensableRound(
  over: readonly string[],
  open: readonly string[],
  isPressed: boolean,
): string | undefined {
  if (over.length > KEPT_ROUNDS) return over[0];
  if (!isPressed) return undefined;
  return over.find((name) => [...over, ...open].some((other) => isBefore(name, other)));
}
