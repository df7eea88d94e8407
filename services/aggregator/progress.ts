import type { Clock } from "#common/ports/clock.js";

const PROGRESS_MS = 500;

/** Waits for work and meanwhile tells twice a second how far it is; returns what the work comes to. */
export async function* narrated<P, T>(
  work: Promise<T>,
  progress: () => P,
  clock: Clock,
): AsyncGenerator<P, T, undefined> {
  const ended = new AbortController();
  const end = (): void => ended.abort();
  const isRunning = (): boolean => !ended.signal.aborted;
  work.then(end, end);
  do {
    await clock.sleep(PROGRESS_MS, ended.signal);
    if (isRunning()) yield progress();
  } while (isRunning());
  return work;
}
