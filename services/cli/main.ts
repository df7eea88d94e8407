#!/usr/bin/env node
import { EXIT } from "./exit.js";
import { processIo } from "./io.js";
import { runProgram } from "./program.js";

const IMPATIENT_MS = 1000;
const stopping = new AbortController();
let abortedAtMs = 0;
const stop = (): void => {
  stopping.abort();
  abortedAtMs = Date.now();
};
process.on("SIGTERM", stop);
// The terminal was closed: children have process groups of their own and would live on.
process.on("SIGHUP", stop);
process.on("SIGINT", () => {
  // An impatient second Ctrl-C does not wait for the draining. Some senders repeat a signal at once: that is no second.
  if (stopping.signal.aborted && Date.now() - abortedAtMs > IMPATIENT_MS) process.exit(EXIT.failed);
  if (!stopping.signal.aborted) stop();
});
// The reader of a pipe may leave first, as `head` does.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.ok);
  throw error;
});

process.exitCode = await runProgram(process.argv.slice(2), processIo(), stopping.signal);
