#!/usr/bin/env node
import { EXIT } from "./exit.js";
import { processIo } from "./io.js";
import { runProgram } from "./program.js";

const stopping = new AbortController();
const stop = (): void => {
  // A second signal does not wait for the draining.
  if (stopping.signal.aborted) process.exit(EXIT.failed);
  stopping.abort();
};
process.on("SIGINT", stop);
process.on("SIGTERM", stop);
// The reader of a pipe may leave first, as `head` does.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.ok);
  throw error;
});

process.exitCode = await runProgram(process.argv.slice(2), processIo(), stopping.signal);
