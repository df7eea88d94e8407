import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { CliError } from "../exit.js";
import { baselineLineSchema, type BaselineLine, type BaselinePlan } from "./baseline-plan.js";

const MAIN = fileURLToPath(new URL("./baseline-main.js", import.meta.url));

/**
 * Runs a plan in a process of its own.
 * @returns held-out losses by name
 */
export async function runBaselines(
  plan: BaselinePlan,
  onLine: (line: BaselineLine) => void,
  signal: AbortSignal,
): Promise<Map<string, number>> {
  const child = spawn(process.execPath, [MAIN], { stdio: ["pipe", "pipe", "pipe"] });
  const stop = (): void => void child.kill("SIGKILL");
  signal.addEventListener("abort", stop, { once: true });
  const losses = new Map<string, number>();
  let complaint = "";
  child.stderr.on("data", (data: Buffer) => (complaint = (complaint + data.toString("utf8")).slice(-2000)));
  const closed = new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  child.stdin.on("error", () => undefined);
  child.stdin.end(JSON.stringify(plan));
  try {
    for await (const text of createInterface({ input: child.stdout })) {
      const line = baselineLineSchema.parse(JSON.parse(text));
      if (line.kind === "loss") losses.set(line.name, line.loss);
      onLine(line);
    }
    const code = await closed;
    if (signal.aborted) throw new CliError("interrupted");
    if (code !== 0) throw new CliError(`a baseline process ended with code ${code ?? "?"}: ${complaint.trim()}`);
    return losses;
  } finally {
    signal.removeEventListener("abort", stop);
    stop();
  }
}
