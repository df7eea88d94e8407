import { registerCompletionHandler } from "ava";

/** Longer than what a test leaves behind may need to end by itself. */
const GRACE_MS = 20_000;

// AVA waits for a test file to leave by itself, and for one that holds a connection or a process open it waits without end.
registerCompletionHandler(() => {
  setTimeout(() => {
    const held = process.getActiveResourcesInfo().filter((name) => name !== "MessagePort");
    // This one is a timer itself.
    held.splice(held.indexOf("Timeout"), 1);
    process.stderr.write(`after its last test a file was held open for ${GRACE_MS} ms by: ${held.join(", ")}\n`);
    process.exit(1);
  }, GRACE_MS).unref();
});
