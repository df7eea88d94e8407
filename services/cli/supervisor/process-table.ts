import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { ProcessRecord } from "./decision.js";

const POLL_MS = 50;

/** Fields of /proc/<pid>/stat after the command name, which may itself hold spaces and brackets. */
export function parseStat(stat: string): { state: string; startTime: string } | undefined {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const state = fields[0];
  const startTime = fields[19];
  return state === undefined || startTime === undefined ? undefined : { state, startTime };
}

/**
 * When the live process of this pid started, as text that differs for a later process of the same pid;
 * undefined if there is none (a zombie is none).
 */
export function startTimeOf(pid: number): string | undefined {
  if (process.platform !== "linux") {
    const answer = spawnSync("ps", ["-o", "lstart=", "-p", String(pid)], { encoding: "utf8" }).stdout.trim();
    return answer === "" ? undefined : answer;
  }
  try {
    const parsed = parseStat(readFileSync(`/proc/${pid}/stat`, "utf8"));
    if (parsed === undefined || parsed.state === "Z" || parsed.state === "X") return undefined;
    return parsed.startTime;
  } catch {
    return undefined;
  }
}

const isAlive = (record: ProcessRecord): boolean => startTimeOf(record.pid) === record.startTime;

/** Signals a process unless it is gone. */
export function signalTo(record: ProcessRecord, signal: NodeJS.Signals): void {
  if (!isAlive(record)) return;
  try {
    process.kill(record.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

async function gone(record: ProcessRecord, withinMs: number): Promise<boolean> {
  for (let waitedMs = 0; isAlive(record); waitedMs += POLL_MS) {
    if (waitedMs >= withinMs) return false;
    await sleep(POLL_MS);
  }
  return true;
}

/** Ends a process: asks it to, and after `graceMs` does not ask any more. Returns when it is gone. */
export async function endProcess(record: ProcessRecord, graceMs: number): Promise<void> {
  signalTo(record, "SIGTERM");
  if (await gone(record, graceMs)) return;
  signalTo(record, "SIGKILL");
  await gone(record, graceMs);
}
