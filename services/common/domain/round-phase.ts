type Phases = ReadonlySet<string>;

/**
 * Phases in which a commit may count. Planning is one: a round that is planned again takes what comes meanwhile, and the
 * scheduler plans nothing before every commit has its verdict.
 */
export const ACCEPTING: Phases = new Set(["Planning", "Training"]);

/** Phases of a round that has its result, or will never have one. */
export const CLOSED: Phases = new Set(["Completed", "Failed"]);

/** Phases in which the fold set does not change any more. */
export const FROZEN: Phases = new Set(["Aggregating", ...CLOSED]);

/** Phases of a round that is not closed. */
export const UNFINISHED: Phases = new Set([...ACCEPTING, "Aggregating"]);
