import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

/** A process whose output is watched. */
export interface Watched {
  command: string;
  args: readonly string[];
  env: NodeJS.ProcessEnv;
  /** How long it may print nothing before it is ended. */
  quietMs: number;
  /** Whether a line says that all is done. */
  isLast: (text: string) => boolean;
  /** Takes each line of its standard output. */
  line: (text: string) => void;
}

/** Signals by which a person or CI ends a run; they go on to the process and all it started. */
const PASSED_ON = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** How long a process that is done may take to end. */
const LEAVE_MS = 10_000;

/** How long what is still in the pipe may take to come once the process has ended. */
const DRAIN_MS = 2000;

/**
 * Runs a process to its end and ends what it leaves behind. Resolves to what went wrong, empty if nothing. Neither a process that
 * hangs, before or after it is done, nor a process of its own that keeps its output open holds the caller up.
 */
export async function runWatched({ command, args, env, quietMs, isLast, line }: Watched): Promise<string> {
  // A process group of its own, so that all of it can be ended.
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"], env, detached: true });
  const endAll = (signal: NodeJS.Signals): void => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, signal);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
  };
  const passOn = (signal: NodeJS.Signals): void => {
    endAll(signal);
    for (const name of PASSED_ON) process.off(name, passOn);
    process.kill(process.pid, signal);
  };
  let ended: string | undefined;
  const watch = setTimeout(() => {
    ended = `nothing printed for ${quietMs / 1000} s`;
    endAll("SIGKILL");
  }, quietMs);
  let leaving: NodeJS.Timeout | undefined;
  const lines = createInterface({ input: child.stdout });
  lines.on("line", (text) => {
    watch.refresh();
    if (isLast(text)) {
      leaving = setTimeout(() => {
        ended = "";
        endAll("SIGKILL");
      }, LEAVE_MS);
    }
    line(text);
  });
  const drained = new Promise<void>((resolve) => lines.once("close", resolve));
  for (const signal of PASSED_ON) process.on(signal, passOn);
  try {
    const trouble = await new Promise<string>((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", (code, signal) => resolve(code === 0 ? "" : (signal ?? `exit code ${code}`)));
    });
    const patience = setTimeout(() => lines.close(), DRAIN_MS);
    await drained;
    clearTimeout(patience);
    endAll("SIGKILL");
    child.stdout.destroy();
    return ended ?? trouble;
  } finally {
    clearTimeout(watch);
    clearTimeout(leaving);
    for (const signal of PASSED_ON) process.off(signal, passOn);
  }
}
