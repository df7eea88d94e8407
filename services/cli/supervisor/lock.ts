import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Keeps other holders out until released. */
export interface Lock {
  release(): void;
}

export type Locked = { ok: true; lock: Lock } | { ok: false; holder: number };

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

function linked(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** Removes the lock of a dead holder; puts it back if it changed hands in the meantime. */
function removeStale(path: string, stale: string, aside: string): void {
  try {
    renameSync(path, aside);
  } catch {
    return;
  }
  if (read(aside) !== stale) linked(aside, path);
  rmSync(aside, { force: true });
}

/**
 * Takes the directory's lock, a file that names its holder by pid and start time; a dead holder's lock is taken over.
 * @param pid of the holder to be
 * @param startTimeOf start time of a live process; undefined if no process has that pid
 */
export function takeLock(directory: string, pid: number, startTimeOf: (pid: number) => string | undefined): Locked {
  const path = join(directory, "lock");
  const own = `${path}.${pid}`;
  const text = `${pid} ${startTimeOf(pid) ?? ""}\n`;
  writeFileSync(own, text);
  try {
    for (;;) {
      if (linked(own, path)) return { ok: true, lock: { release: () => release(path, text) } };
      const held = read(path);
      if (held === undefined) continue;
      const [holder = "", startTime] = held.trim().split(" ");
      if (startTime !== undefined && startTimeOf(Number(holder)) === startTime) {
        return { ok: false, holder: Number(holder) };
      }
      removeStale(path, held, `${own}.stale`);
    }
  } finally {
    rmSync(own, { force: true });
  }
}

function release(path: string, text: string): void {
  if (read(path) === text) rmSync(path, { force: true });
}
