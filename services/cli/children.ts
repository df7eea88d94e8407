import type { ChildProcess } from "node:child_process";

const living = new Set<ChildProcess>();

/** Ends what still lives when this process exits without having drained, as after a second Ctrl-C. */
process.on("exit", () => {
  for (const child of living) child.kill("SIGKILL");
});

/** Remembers a child that has a process group of its own until it has ended. */
export function track(child: ChildProcess): void {
  living.add(child);
  child.once("close", () => living.delete(child));
  child.once("error", () => living.delete(child));
}
