import type { Io } from "../io.js";
import { formatBar, LiveArea } from "./progress.js";

const BAR_CELLS = 24;
/** Lines for logs come this often at most, as a share of the whole. */
const LOGGED_SHARE = 0.1;

/** How far something is. */
export interface WorkProgress {
  /** What it is; a new one begins anew. */
  readonly what: string;
  readonly done: number;
  readonly total: number;
  /** The same for people. */
  readonly detail: string;
}

/**
 * Shows on standard error how far something is: a bar on a terminal, elsewhere a line for each tenth of what is long.
 * @param leastLogged totals from which lines are worth it: what is smaller is over before anybody reads of it
 */
export function workDisplay(io: Io, leastLogged: number): { show(progress: WorkProgress): void; clear(): void } {
  const area = new LiveArea((text) => io.err(text), io.terminal, io.width);
  let logged = { what: "", share: 0 };
  return {
    show({ what, done, total, detail }) {
      const line = `${what}  ${detail}`;
      area.show([`${formatBar(done, total, BAR_CELLS)} ${line}`]);
      if (io.terminal || total < leastLogged) return;
      const share = done / total;
      if (logged.what === what && share - logged.share < LOGGED_SHARE) return;
      logged = { what, share };
      io.err(`${line}\n`);
    },
    clear: () => area.show([]),
  };
}
