import type { TransferProgress } from "../folders.js";
import type { Io } from "../io.js";
import { formatBytes } from "./format.js";
import { formatBar, LiveArea } from "./progress.js";

const BAR_CELLS = 24;
/** Lines for logs come this often at most, as a share of the whole. */
const LOGGED_SHARE = 0.1;
/** What is smaller is over before anybody reads of it. */
const LEAST_LOGGED_BYTES = 64 * 2 ** 20;

/** Shows how far a transfer is: a bar on a terminal, elsewhere a line for each tenth of something large. */
export function transferDisplay(io: Io): { show(progress: TransferProgress): void; clear(): void } {
  const area = new LiveArea((text) => io.err(text), io.terminal, io.width);
  let logged = { file: "", share: 0 };
  return {
    show({ file, doneBytes, totalBytes }) {
      const line = `${file}  ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`;
      area.show([`${formatBar(doneBytes, totalBytes, BAR_CELLS)} ${line}`]);
      if (io.terminal || totalBytes < LEAST_LOGGED_BYTES) return;
      const share = doneBytes / totalBytes;
      if (logged.file === file && share - logged.share < LOGGED_SHARE) return;
      logged = { file, share };
      io.err(`${line}\n`);
    },
    clear: () => area.show([]),
  };
}
