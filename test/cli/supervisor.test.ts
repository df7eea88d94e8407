import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import fc from "fast-check";
import { CliError, EXIT } from "#services/cli/exit.js";
import { findProgram } from "#services/cli/supervisor/binaries.js";
import { afterExit, choosePorts, livingOrphans } from "#services/cli/supervisor/decision.js";
import { waitReady, type Health } from "#services/cli/supervisor/health.js";
import { takeLock } from "#services/cli/supervisor/lock.js";
import { drawPort, isPortFree } from "#services/cli/supervisor/ports.js";
import { endProcess, parseStat, startTimeOf } from "#services/cli/supervisor/process-table.js";
import { readState, writeState } from "#services/cli/supervisor/state.js";
import { Supervisor } from "#services/cli/supervisor/supervisor.js";
import { addresses, natsNodesOf, planUnits, portNames, type Unit } from "#services/cli/supervisor/units.js";

function scratch(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), "shoal-test-"));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

test("a child that keeps failing is started ever later, up to a limit; one that ran long begins anew", (t) => {
  t.deepEqual(afterExit(0, 10), { failures: 1, delayMs: 200 });
  t.deepEqual(afterExit(1, 10), { failures: 2, delayMs: 400 });
  t.deepEqual(afterExit(5, 10), { failures: 6, delayMs: 6400 });
  t.deepEqual(afterExit(50, 10), { failures: 51, delayMs: 10_000 });
  t.deepEqual(afterExit(50, 30_000), { failures: 1, delayMs: 200 });
});

test("orphans are recognised by pid and start time, and ended last started first", (t) => {
  const records = [
    { name: "nats", pid: 10, startTime: "100" },
    { name: "redis", pid: 11, startTime: "101" },
    { name: "registry-0", pid: 12, startTime: "102" },
  ];
  // 11 is gone; the pid of 12 belongs to a later process.
  const now = new Map([
    [10, "100"],
    [12, "999"],
  ]);
  t.deepEqual(
    livingOrphans(records, (pid) => now.get(pid)).map(({ name }) => name),
    ["nats"],
  );
  const alive = (pid: number): string | undefined => records.find((record) => record.pid === pid)?.startTime;
  t.deepEqual(
    livingOrphans(records, alive).map(({ name }) => name),
    ["registry-0", "redis", "nats"],
  );
});

test("ports: remembered ones that are free stay, all are different, none is taken", async (t) => {
  const taken = new Set([5000]);
  let next = 5000;
  const draw = (): Promise<number> => Promise.resolve(next++);
  const isFree = (port: number): Promise<boolean> => Promise.resolve(!taken.has(port));
  const chosen = await choosePorts(["a", "b", "c", "d"], { a: 5000, b: 5002, c: 5002 }, isFree, draw);
  t.is(chosen["b"], 5002);
  t.is(new Set(Object.values(chosen)).size, 4);
  t.false(chosen["a"] === 5000);
  // "c" remembered what "b" already has.
  t.not(chosen["c"], 5002);
});

test("ports: whatever was remembered, every name gets its own", async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.dictionary(fc.constantFrom("a", "b", "c"), fc.integer({ min: 1, max: 6 })),
      async (remembered) => {
        let next = 0;
        const chosen = await choosePorts(
          ["a", "b", "c"],
          remembered,
          (port) => Promise.resolve(port % 2 === 0),
          () => Promise.resolve((next += 1)),
        );
        t.is(new Set(Object.values(chosen)).size, 3);
      },
    ),
  );
});

test("a port in use is not free", async (t) => {
  const port = await drawPort();
  t.true(await isPortFree(port));
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  t.false(await isPortFree(port));
  await new Promise((resolve) => server.close(resolve));
});

test("start times tell processes apart", async (t) => {
  t.deepEqual(parseStat("12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20"), {
    state: "S",
    startTime: "777",
  });
  t.is(startTimeOf(process.pid), startTimeOf(process.pid));
  const child = spawn(
    process.execPath,
    ["-e", "process.on('SIGTERM', () => {}); console.log('up'); setInterval(() => {}, 1000)"],
    {
      stdio: ["ignore", "pipe", "ignore"],
    },
  );
  await new Promise((resolve) => child.stdout.once("data", resolve));
  const pid = child.pid ?? 0;
  const startTime = startTimeOf(pid);
  t.truthy(startTime);
  // A record of another process with the same pid must not end this one.
  await endProcess({ name: "other", pid, startTime: "0" }, 100);
  t.is(startTimeOf(pid), startTime);
  // It does not listen to SIGTERM, so SIGKILL follows.
  await endProcess({ name: "child", pid, startTime: startTime ?? "" }, 200);
  t.is(startTimeOf(pid), undefined);
});

test("the state survives, and a damaged one counts as none", (t) => {
  const directory = scratch(t);
  t.deepEqual(readState(directory), { version: 1, ports: {}, processes: [] });
  const state = { version: 1 as const, ports: { nats: 4000 }, processes: [{ name: "nats", pid: 1, startTime: "2" }] };
  writeState(directory, state);
  t.deepEqual(readState(directory), state);
  writeFileSync(join(directory, "state.json"), '{"version":1,"ports":{"na');
  t.deepEqual(readState(directory), { version: 1, ports: {}, processes: [] });
});

test("a directory has one holder; a dead holder's lock is taken over", (t) => {
  const directory = scratch(t);
  const live = new Map([
    [1, "a"],
    [2, "b"],
  ]);
  const startTime = (pid: number): string | undefined => live.get(pid);
  const first = takeLock(directory, 1, startTime);
  t.true(first.ok);
  t.deepEqual(takeLock(directory, 2, startTime), { ok: false, holder: 1 });
  // The same pid, another process: the holder died without a release.
  live.set(1, "c");
  const second = takeLock(directory, 2, startTime);
  t.true(second.ok);
  // The dead holder's release must not free what is not its own.
  if (first.ok) first.lock.release();
  t.is(takeLock(directory, 1, startTime).ok, false);
  if (second.ok) second.lock.release();
  t.true(takeLock(directory, 1, startTime).ok);
});

test("a missing program is told with its Debian package", (t) => {
  const error = t.throws(() => findProgram("no-such-server", "no-such-package", "/nowhere"), { instanceOf: CliError });
  t.is(error.exitCode, EXIT.unavailable);
  t.regex(error.message, /apt-get install no-such-package/);
});

const FACTS = {
  replicas: 2,
  ports: Object.fromEntries(portNames(2).map((name, i) => [name, 7000 + i])),
  nats: {
    command: "nats-server",
    host: "127.0.0.1",
    configFiles: ["/d/nats.conf"],
    credsFile: "/d/service.creds",
  },
  redis: { command: "redis-server" },
  keysDir: "/d/keys",
  node: "node",
  servicesDir: "/s",
  settings: { SHOAL_HEARTBEAT_MS: "500" },
};

test("units start after what they need; only the registry sees the keys", (t) => {
  const stages = planUnits(FACTS);
  const units = stages.flat();
  t.deepEqual(
    stages.map((stage) => stage.map(({ name }) => name).join(" ")),
    [
      "nats redis",
      "registry-0 registry-1",
      "scheduler-0 scheduler-1 aggregator-0 aggregator-1 telemetry-0 telemetry-1",
    ],
  );
  for (const { name, env } of units) t.is(env["SHOAL_KEYS_DIR"], name.startsWith("registry") ? "/d/keys" : undefined);
  const scheduler = units.find(({ name }) => name === "scheduler-1");
  t.deepEqual(scheduler?.args, ["/s/scheduler/main.js"]);
  t.is(scheduler?.env["SHOAL_GRPC_LISTEN"], addresses(FACTS.ports, 2, "grpc").scheduler[1]);
  t.is(scheduler?.env["SHOAL_HEARTBEAT_MS"], "500");
  t.is(new Set(units.flatMap(({ env }) => [env["SHOAL_GRPC_LISTEN"], env["SHOAL_METRICS_LISTEN"]])).size, 17);
});

test("a cluster's servers start first, each with its own ports; services know all of them and keep three copies", (t) => {
  const ports = Object.fromEntries(portNames(1, 3).map((name, i) => [name, 7000 + i]));
  t.is(new Set(Object.values(ports)).size, Object.keys(ports).length);
  t.is(natsNodesOf(ports), 3);
  t.is(natsNodesOf(FACTS.ports), 1);
  t.is(natsNodesOf({}), undefined);
  const nats = { ...FACTS.nats, host: "10.0.0.5", configFiles: ["/d/0", "/d/1", "/d/2"] };
  const units = planUnits({ ...FACTS, replicas: 1, ports, nats });
  t.deepEqual(
    units[0]?.map(({ name, args }) => [name, args[1]]),
    [
      ["nats-0", "/d/0"],
      ["nats-1", "/d/1"],
      ["nats-2", "/d/2"],
      ["redis", "127.0.0.1"],
    ],
  );
  const urls = `nats://10.0.0.5:${ports["nats-0"] ?? 0},nats://10.0.0.5:${ports["nats-1"] ?? 0},nats://10.0.0.5:${ports["nats-2"] ?? 0}`;
  for (const { env } of units.slice(1).flat()) {
    t.is(env["SHOAL_NATS_URL"], urls);
    t.is(env["SHOAL_PUBLIC_NATS_URLS"], urls);
    t.is(env["SHOAL_STREAM_REPLICAS"], "3");
  }
});

/** A child that listens on a port and writes its start to a file. */
function listener(name: string, port: number, file: string): Unit {
  const code = `require("fs").appendFileSync(${JSON.stringify(file)}, "${name} up\\n");
    require("net").createServer((s) => s.end("READY")).listen(${port}, "127.0.0.1");
    process.on("SIGTERM", () => { require("fs").appendFileSync(${JSON.stringify(file)}, "${name} down\\n"); process.exit(0); });`;
  const health = { kind: "tcp", host: "127.0.0.1", port, send: "", expect: "READY" } as const;
  return { name, command: process.execPath, args: ["-e", code], env: {}, health };
}

test("the supervisor starts in order, restarts what dies and drains in reverse", async (t) => {
  const directory = scratch(t);
  const file = join(directory, "order");
  const said: string[] = [];
  const [a, b] = [listener("a", await drawPort(), file), listener("b", await drawPort(), file)];
  const supervisor = new Supervisor([[a], [b]], directory, {
    say: (line) => said.push(line),
    processes: () => undefined,
  });
  await supervisor.start();
  const before = supervisor.pids();
  process.kill(before["b"] ?? 0, "SIGKILL");
  while (supervisor.pids()["b"] === before["b"] || supervisor.pids()["b"] === undefined)
    await new Promise((r) => setTimeout(r, 20));
  t.true(await waitReady(b.health, 60_000, new AbortController().signal));
  t.is(supervisor.pids()["a"], before["a"]);
  t.regex(said.join("\n"), /b ended by SIGKILL; starting it again/);
  await supervisor.stop();
  t.is(readFileSync(file, "utf8"), "a up\nb up\nb up\nb down\na down\n");
  t.deepEqual(supervisor.pids(), {});
});

test("a unit that answered and stands still is killed and started again; one that never answered is left alone", async (t) => {
  const directory = scratch(t);
  const said: string[] = [];
  const answering = listener("a", await drawPort(), join(directory, "order"));
  const mute = listener("b", await drawPort(), join(directory, "order"));
  const units = [
    { ...answering, alive: answering.health },
    { ...mute, alive: { ...mute.health, expect: "NEVER" } as Health },
  ];
  const events = { say: (line: string): void => void said.push(line), processes: () => undefined };
  const supervisor = new Supervisor([units], directory, events, { everyMs: 200, mostSilent: 6 });
  await supervisor.start();
  const before = supervisor.pids();
  await new Promise((r) => setTimeout(r, 1500));
  t.deepEqual(supervisor.pids(), before);
  process.kill(before["a"] ?? 0, "SIGSTOP");
  while (supervisor.pids()["a"] === before["a"] || supervisor.pids()["a"] === undefined)
    await new Promise((r) => setTimeout(r, 20));
  t.true(await waitReady(answering.health, 60_000, new AbortController().signal));
  t.is(supervisor.pids()["b"], before["b"]);
  t.deepEqual(
    said.filter((line) => line.includes("stands still")),
    ["a stands still; killing it"],
  );
  await supervisor.stop();
});

test("a full disk under the state is told once, and what dies is still restarted", async (t) => {
  const directory = scratch(t);
  const unit = listener("a", await drawPort(), join(directory, "order"));
  const said: string[] = [];
  const noted: string[][] = [];
  let isFull = false;
  const supervisor = new Supervisor([[unit]], directory, {
    say: (line) => said.push(line),
    processes: (records) => {
      if (isFull) throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
      noted.push(records.map(({ name }) => name));
    },
  });
  await supervisor.start();
  const before = supervisor.pids()["a"];
  isFull = true;
  process.kill(before ?? 0, "SIGKILL");
  while (supervisor.pids()["a"] === before || supervisor.pids()["a"] === undefined)
    await new Promise((r) => setTimeout(r, 20));
  t.true(await waitReady(unit.health, 60_000, new AbortController().signal));
  t.is(said.filter((line) => line.includes("no space left on device")).length, 1);
  isFull = false;
  const count = noted.length;
  while (noted.length === count) await new Promise((r) => setTimeout(r, 20));
  t.deepEqual(noted.at(-1), ["a"]);
  t.is(said.at(-1), "the processes are noted again");
  await supervisor.stop();
  t.deepEqual(noted.at(-1), []);
});

const mayMount = process.getuid?.() === 0 && process.platform === "linux";

(mayMount ? test : test.skip)("a state that does not fit on the disk leaves the one before, whole", (t) => {
  const directory = scratch(t);
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", directory]);
  t.teardown(() => execFileSync("umount", [directory]));
  const state = { version: 1 as const, ports: { nats: 4000 }, processes: [] };
  writeState(directory, state);
  const names = Array.from({ length: 4000 }, (_, i) => [`port-${i}`, 5000] as const);
  t.throws(() => writeState(directory, { ...state, ports: Object.fromEntries(names) }), { code: "ENOSPC" });
  t.deepEqual(readState(directory), state);
  t.deepEqual(readdirSync(directory), ["state.json"]);
});

test("a unit that never becomes ready can be given up on", async (t) => {
  const directory = scratch(t);
  const health = { kind: "tcp", host: "127.0.0.1", port: await drawPort(), send: "", expect: "X" } as const;
  const unit: Unit = {
    name: "mute",
    command: process.execPath,
    args: ["-e", "setInterval(() => {}, 1e3)"],
    env: {},
    health,
  };
  const supervisor = new Supervisor([[unit]], directory, { say: () => undefined, processes: () => undefined });
  const started = supervisor.start();
  supervisor.interrupt();
  await started;
  const pid = supervisor.pids()["mute"] ?? 0;
  await supervisor.stop();
  t.is(startTimeOf(pid), undefined);
});
