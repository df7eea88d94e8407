import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

/** A process whose output is watched. */
export interface Watched {
  command: string;
  args: readonly string[];
  env: NodeJS.ProcessEnv;
  /** How long it may print nothing before it is ended. */
  quietMs: number;
  /** Takes each line of its standard output. */
  line: (text: string) => void;
}

/** Signals by which a person or CI ends a run; they go on to the process and all it started. */
const PASSED_ON = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** How long what is still in the pipe may take to come once the process has ended. */
const DRAIN_MS = 2000;

/**
 * Runs a process to its end and ends what it leaves behind. Resolves to what went wrong, empty if nothing. Neither a process that
 * hangs nor a process of its own that keeps its output open holds the caller up.
 */
export async function runWatched({ command, args, env, quietMs, line }: Watched): Promise<string> {
  // A process group of its own, so that all of it can be ended.
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"], env, detached: true });
  const endAll = (signal: NodeJS.Signals): void => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, signal);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
  };
  let silence = "";
  const watch = setTimeout(() => {
    silence = `nothing printed for ${quietMs / 1000} s`;
    endAll("SIGKILL");
  }, quietMs);
  const lines = createInterface({ input: child.stdout });
  lines.on("line", (text) => {
    watch.refresh();
    line(text);
  });
  const drained = new Promise<void>((resolve) => lines.once("close", resolve));
  for (const signal of PASSED_ON) process.on(signal, endAll);
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
    return silence === "" ? trouble : silence;
  } finally {
    clearTimeout(watch);
    for (const signal of PASSED_ON) process.off(signal, endAll);
  }
}
