import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import test from "ava";
import { parseContext, type Context } from "#services/cli/context.js";
import { startTimeOf } from "#services/cli/supervisor/process-table.js";

const MAIN = fileURLToPath(new URL("../../services/cli/main.js", import.meta.url));

interface Up {
  readonly child: ChildProcess;
  readonly context: Context;
  readonly said: () => string;
}

/** Starts `shoal up` and waits until it says that it is ready. */
async function startUp(dir: string): Promise<Up> {
  const child = spawn(process.execPath, [MAIN, "up", "--dir", dir, "--replicas", "2"], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let said = "";
  child.stderr.on("data", (data: Buffer) => (said += data.toString()));
  child.stdout.on("data", (data: Buffer) => (said += data.toString()));
  while (!said.includes("control plane ready")) {
    if (child.exitCode !== null) throw new Error(`up ended: ${said}`);
    await sleep(50);
  }
  const parsed = parseContext(readFileSync(join(dir, "context.json"), "utf8"));
  if (!parsed.ok) throw new Error(parsed.problem);
  return { child, context: parsed.context, said: () => said };
}

const run = (args: readonly string[]): Promise<{ code: number | null; out: string; err: string }> =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, [MAIN, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    let [out, err] = ["", ""];
    child.stdout.on("data", (data: Buffer) => (out += data.toString()));
    child.stderr.on("data", (data: Buffer) => (err += data.toString()));
    child.once("close", (code) => resolve({ code, out, err }));
  });

const ended = (child: ChildProcess): Promise<number | null> =>
  new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) resolve(child.exitCode);
    else child.once("close", (code) => resolve(code));
  });

test("up: one holder a directory, goes on after SIGKILL of itself and of everything, drains on SIGTERM", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "shoal-test-"));
  const started: number[] = [];
  t.teardown(() => {
    for (const pid of started) if (startTimeOf(pid) !== undefined) process.kill(pid, "SIGKILL");
    rmSync(dir, { recursive: true, force: true });
  });
  const remember = (up: Up): Up => {
    started.push(...Object.values(up.context.pids));
    return up;
  };

  const first = remember(await startUp(dir));
  t.deepEqual(Object.keys(first.context.pids).sort(), [
    ...["aggregator-0", "aggregator-1", "nats", "redis", "registry-0", "registry-1"],
    ...["scheduler-0", "scheduler-1", "telemetry-0", "telemetry-1", "up"],
  ]);
  const second = await run(["up", "--dir", dir]);
  t.is(second.code, 75, second.err);
  t.regex(second.err, new RegExp(`pid ${first.context.pids["up"] ?? "?"}`));
  const issued = await run(["token", "issue", "--json", "--context", dir]);
  t.is(issued.code, 0, issued.err);

  // The supervisor alone dies: its children are orphans that the next one ends.
  first.child.kill("SIGKILL");
  await ended(first.child);
  const third = remember(await startUp(dir));
  t.regex(third.said(), /ending registry-0 \(pid \d+\) of an earlier run/);
  t.deepEqual(third.context.grpc, first.context.grpc);
  t.is(third.context.natsUrl, first.context.natsUrl);
  for (const pid of Object.values(first.context.pids)) t.is(startTimeOf(pid), undefined);

  // Everything dies at once; what was stored is still there.
  for (const pid of Object.values(third.context.pids)) process.kill(pid, "SIGKILL");
  await ended(third.child);
  const fourth = remember(await startUp(dir));
  t.is(fourth.context.natsUrl, first.context.natsUrl);
  const { id } = JSON.parse(issued.out) as { id: string };
  const revoked = await run(["token", "revoke", id, "--context", dir]);
  t.is(revoked.code, 0, revoked.err);
  t.is((await run(["token", "revoke", "absent", "--context", dir])).code, 1);

  fourth.child.kill("SIGTERM");
  t.is(await ended(fourth.child), 0);
  for (const pid of Object.values(fourth.context.pids)) t.is(startTimeOf(pid), undefined);
  t.is((await run(["get", "jobs", "--context", dir])).code, 69);
});
