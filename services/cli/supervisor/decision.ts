/** A process as remembered on disk: the pid alone may have been given to another one since. */
export interface ProcessRecord {
  readonly name: string;
  readonly pid: number;
  /** When it started, in the system's own form; equal only for the same process. */
  readonly startTime: string;
}

const FIRST_DELAY_MS = 200;
const MAX_DELAY_MS = 10_000;
/** A process that ran this long starts with a clean sheet. */
const SETTLED_MS = 30_000;

/**
 * What to do after a child ended unasked: wait longer each time it fails soon after its start.
 * @param failures soon failures in a row before this one
 * @param ranMs how long it ran, milliseconds
 */
export function afterExit(failures: number, ranMs: number): { failures: number; delayMs: number } {
  const before = ranMs >= SETTLED_MS ? 0 : failures;
  return { failures: before + 1, delayMs: Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(before, 20)) };
}

/**
 * Processes of an earlier `up` that still live, last started first: the order in which they are ended.
 * @param startTimeOf start time of a live process; undefined if no process has that pid
 */
export function livingOrphans(
  records: readonly ProcessRecord[],
  startTimeOf: (pid: number) => string | undefined,
): ProcessRecord[] {
  return records.filter((record) => startTimeOf(record.pid) === record.startTime).reverse();
}

export type PortOfName = Readonly<Record<string, number>>;

/**
 * A port for every name: the one it had before if that is still free, a new one otherwise. All are different.
 * @param draw a port that is free now; may return one twice
 */
export async function choosePorts(
  names: readonly string[],
  remembered: PortOfName,
  isFree: (port: number) => Promise<boolean>,
  draw: () => Promise<number>,
): Promise<Record<string, number>> {
  const chosen: Record<string, number> = {};
  const taken = new Set<number>();
  for (const name of names) {
    const before = remembered[name];
    if (before === undefined || taken.has(before) || !(await isFree(before))) continue;
    chosen[name] = before;
    taken.add(before);
  }
  // A port that another name remembers stays reserved, or a restart would shuffle the ports around.
  const reserved = new Set(Object.values(remembered));
  for (const name of names) {
    if (chosen[name] !== undefined) continue;
    let port = await draw();
    while (taken.has(port) || reserved.has(port)) port = await draw();
    chosen[name] = port;
    taken.add(port);
  }
  return chosen;
}
