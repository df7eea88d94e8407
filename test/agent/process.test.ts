import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { revokeUsers } from "#common/adapters/nats/credentials.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { startNats, type NatsTestServer } from "#test/support/servers.js";
import { MiniRegistry } from "./support/mini-registry.js";
import { tinyAssignment, tinyTask } from "./support/tiny-model.js";

const MAIN = fileURLToPath(new URL("../../agent/main.js", import.meta.url));
let server: NatsTestServer;

test.before(async () => {
  server = await startNats();
});

test.after.always(() => server.stop());

/** An agent process with what it wrote. */
class AgentProcess {
  output = "";
  readonly #child: ChildProcess;
  readonly exit: Promise<number | null>;

  constructor(args: readonly string[]) {
    this.#child = spawn(process.execPath, [MAIN, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.on("data", (data: Buffer) => (this.output += data.toString()));
    }
    this.exit = once(this.#child, "exit").then(([code]) => code as number | null);
  }

  /** The exit code; a process that does not end fails the test with what it wrote. */
  async ended(): Promise<number | null> {
    const late = new Promise<never>((_resolve, reject) =>
      setTimeout(() => reject(new Error(`still running: ${this.output}`)), 120_000).unref(),
    );
    return Promise.race([this.exit, late]);
  }

  kill(signal: NodeJS.Signals): Promise<number | null> {
    this.#child.kill(signal);
    return this.exit;
  }
}

async function workspace(t: ExecutionContext): Promise<{ state: string; data: string; root: string }> {
  const root = await mkdtemp(join(tmpdir(), "shoal-agent-"));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const [state, data] = [join(root, "state"), join(root, "data")];
  await mkdir(data);
  await writeFile(join(data, "a.txt"), "private words of this device only. ".repeat(40));
  return { state, data, root };
}

function agent(t: ExecutionContext, args: readonly string[]): AgentProcess {
  const started = new AgentProcess(args);
  t.teardown(() => started.kill("SIGKILL"));
  return started;
}

async function registry(t: ExecutionContext): Promise<MiniRegistry> {
  const link = await server.connect();
  await ensureStreams(link);
  const mini = new MiniRegistry(server, link);
  t.teardown(() => mini.close());
  return mini;
}

async function until(what: string, met: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (await met()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`never came: ${what}`);
}

const assigned = (round: string, device: string, localSteps: number): AssignedTask => ({
  task: tinyTask(round),
  assignment: { ...tinyAssignment(localSteps), device },
  deadlineAtMs: 0,
});

test.serial(
  "a process joins with its own key, trains, survives kill -9 and a restart of NATS, and stops on SIGTERM",
  async (t) => {
    const mini = await registry(t);
    const { state, data } = await workspace(t);
    const args = [
      "--state-dir",
      state,
      "--dataset",
      `notes=${data}`,
      "--name",
      "gate-1",
      "--label",
      "site=pier",
      "--json-log",
    ];
    const first = agent(t, [...args, "--join", await mini.token("tok1"), "--throttle", "0.05"]);
    await until("a heartbeat", () => mini.beats.length > 0);
    t.like(mini.joins[0], { device: "gate-1", labels: { site: "pier" } });
    t.true((mini.joins[0]?.facts?.gflops ?? 0) > 0 && (mini.joins[0]?.facts?.memoryBytes ?? 0) > 2 ** 20);
    t.is((await stat(join(state, "identity.json"))).mode & 0o777, 0o600);
    mini.give("gate-1", [assigned("proc-1", "gate-1", 60)]);
    await until("training", () => (mini.beats.at(-1)?.assignments[0]?.step ?? 0) > 3);
    await first.kill("SIGKILL");

    // As a service does whose environment file has no token any more.
    const second = agent(t, [...args, "--join", " "]);
    await until("the commit", async () => (await mini.commits("proc-1")).length === 1);
    t.is(mini.joins.length, 1, "the identity is kept");
    t.like((await mini.commits("proc-1"))[0], { device: "gate-1", localSteps: 60 });
    await server.restart();
    mini.give("gate-1", [assigned("proc-2", "gate-1", 5)]);
    await until("the next commit", async () => (await mini.commits("proc-2").catch(() => [])).length === 1);
    t.is(await second.kill("SIGTERM"), 0);
    t.false((second.output + first.output).includes("private words"));
    t.false((await readFile(join(state, "identity.json"), "utf8")).includes("open sesame"));
  },
);

test.serial("an agent waits for a control plane that is not there yet", async (t) => {
  const mini = await registry(t);
  const token = await mini.token("tok2");
  const { state } = await workspace(t);
  await server.kill();
  const waiting = agent(t, ["--state-dir", state, "--join", token, "--name", "gate-2"]);
  await until("the log line", () => waiting.output.includes("waiting for the control plane"));
  await server.start();
  await until("the join", () => mini.joins.length === 1);
  t.is(await waiting.kill("SIGTERM"), 0);
});

test.serial("a refused token ends with the registry's words and code 77", async (t) => {
  const mini = await registry(t);
  const { state } = await workspace(t);
  const refused = agent(t, ["--state-dir", state, "--join", await mini.token("tok3", "wrong"), "--name", "gate-3"]);
  t.is(await refused.ended(), 77);
  t.regex(refused.output, /TokenUnknown: ask for another token/);
});

test.serial(
  "a revoked device stops with code 77, stays out with its old token and comes back with a new one",
  async (t) => {
    const mini = await registry(t);
    const { state } = await workspace(t);
    const args = ["--state-dir", state, "--name", "gate-4"];
    const token = await mini.token("tok4");
    const running = agent(t, [...args, "--join", token]);
    await until("a heartbeat", () => mini.beats.length > 0);
    const system = await server.connect(server.root.systemCreds);
    await revokeUsers(system.nc, server.root, new Map([[mini.publicKeyOf("gate-4"), Date.now()]]));
    await system.close();
    t.is(await running.ended(), 77);
    t.regex(running.output, /does not accept this device's credential any more; join again with a new token/);
    t.is(await agent(t, [...args, "--join", token]).ended(), 77);
    const beats = mini.beats.length;
    const back = agent(t, [...args, "--join", await mini.token("tok5")]);
    await until("a heartbeat of the new life", () => mini.beats.length > beats);
    t.is(await back.kill("SIGTERM"), 0);
  },
);

test.serial("a credential is renewed in time and outlives its first validity", async (t) => {
  const mini = await registry(t);
  mini.validMs = 20_000;
  const { state } = await workspace(t);
  const running = agent(t, ["--state-dir", state, "--join", await mini.token("tok6"), "--name", "gate-5"]);
  await until("a request to renew", () => mini.beats.some((beat) => beat.renewCredential));
  mini.validMs = 3_600_000;
  await until("calm", () => mini.beats.at(-1)?.renewCredential === false);
  await new Promise((resolve) => setTimeout(resolve, 21_000));
  const beats = mini.beats.length;
  await until("heartbeats beyond the first validity", () => mini.beats.length > beats + 3);
  t.is(await running.kill("SIGTERM"), 0);
});

test.serial("wrong options end with code 64 and a remedy for each", async (t) => {
  const { state, root } = await workspace(t);
  const policy = join(root, "policy.yaml");
  await writeFile(policy, "purpose: [x]\n");
  const cases: [string[], RegExp][] = [
    [["--state-dir", state, "--throttle", "2"], /--throttle 2: give a share of the full speed above 0 and at most 1/],
    [["--state-dir", state, "--threads", "x"], /--threads null: give a whole number/],
    [["--state-dir", state, "--name", "Not OK"], /--name "Not OK": use at most 63 lower-case letters/],
    [["--state-dir", state, "--dataset", "notes"], /--dataset "notes": write it with an "="/],
    [["--state-dir", state, "--join", "rubbish"], /--join: .* is not a join token/],
    [["--state-dir", state, "--policy", policy], /--policy ".*": purpose \(\["x"\]\) is not known/],
    [["--state-dir", state, "--polcy", policy], /--polcy/],
    [["--state-dir", join(policy, "state")], /--state-dir ".*state": .*name a folder the agent may write to/],
    [["--state-dir", state], /holds no identity; start the agent with --join TOKEN/],
    [[], /--state-dir "": name a folder/],
  ];
  for (const [args, expected] of cases) {
    const wrong = agent(t, args);
    t.is(await wrong.ended(), 64, args.join(" "));
    t.regex(wrong.output, expected);
    t.false(wrong.output.includes("    at "), "a stack trace is no message");
  }
});
