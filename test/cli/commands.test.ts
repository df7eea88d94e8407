import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Metadata, Server, ServerCredentials, status } from "@grpc/grpc-js";
import test, { type ExecutionContext } from "ava";
import { invalidArgument, toServiceError } from "#common/adapters/grpc/errors.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { JobServiceService } from "#proto/shoal/v1/job_service.js";
import { WatchEventType } from "#proto/shoal/v1/meta.js";

const MAIN = fileURLToPath(new URL("../../services/cli/main.js", import.meta.url));

interface Outcome {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs the CLI as a process of its own. */
function shoal(args: readonly string[], input = "", env: Record<string, string> = {}): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [MAIN, ...args], { env: { PATH: "/usr/bin:/bin", ...env } });
    let out = "";
    let err = "";
    child.stdout.on("data", (data: Buffer) => (out += data.toString()));
    child.stderr.on("data", (data: Buffer) => (err += data.toString()));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, out, err }));
    child.stdin.end(input);
  });
}

function scratch(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), "shoal-test-"));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const job = (phase: string, completedRounds: number): TrainingJob =>
  TrainingJob.fromPartial({
    metadata: { name: "poems", resourceVersion: "7", createdAtMs: 1 },
    spec: { rounds: 4 },
    status: { phase, completedRounds, trainLoss: 2.5 },
  });

/** A scheduler that knows the job "poems" and refuses every manifest that says "wrong". */
async function fakeScheduler(t: ExecutionContext): Promise<string> {
  const server = new Server();
  server.addService(JobServiceService, {
    apply: (call: { request: { source?: { value: unknown } } }, done: (error: unknown, answer?: unknown) => void) => {
      if (!String(call.request.source?.value).includes("wrong")) {
        done(null, { job: job("Pending", 0), outcome: "created" });
        return;
      }
      const violations = [{ field: "spec.rounds", value: "wrong", description: "must be a whole number" }];
      done(toServiceError(invalidArgument(violations)));
    },
    get: (call: { request: { name: string } }, done: (error: unknown, answer?: unknown) => void) => {
      if (call.request.name === "poems") done(null, { job: job("Running", 1) });
      else done({ code: status.NOT_FOUND, details: "there is no job", metadata: new Metadata() });
    },
    list: (call: { request: { pageToken: string } }, done: (error: unknown, answer?: unknown) => void) => {
      const first = call.request.pageToken === "";
      done(null, { jobs: [job("Running", first ? 1 : 2)], nextPageToken: first ? "two" : "", resourceVersion: "7" });
    },
    watch: (call: { request: { name: string }; write: (event: unknown) => void; end: () => void }) => {
      const last = call.request.name === "poems" ? "Completed" : "Failed";
      for (const [phase, rounds] of [["Running", 1] as const, [last, 4] as const]) {
        call.write({ type: WatchEventType.PUT, job: job(phase, rounds), resourceVersion: "8" });
      }
      call.end();
    },
  } as unknown as Parameters<Server["addService"]>[1]);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) resolve(bound);
      else reject(error);
    });
  });
  t.teardown(() => server.forceShutdown());
  const directory = scratch(t);
  const address = [`127.0.0.1:${port}`];
  const context = {
    version: 1,
    grpc: { registry: address, scheduler: address, telemetry: address },
    metrics: {},
    natsUrl: "nats://127.0.0.1:1",
    redisUrl: "redis://127.0.0.1:1",
    pids: {},
  };
  writeFileSync(join(directory, "context.json"), JSON.stringify(context));
  return directory;
}

test("wrong usage ends with 64 and says what is wrong", async (t) => {
  const cases: [string[], RegExp][] = [
    [["swim"], /unknown command 'swim'/],
    [["apply"], /--file/],
    [["up", "--replicas", "none"], /whole number from 1 to 8/],
    [["token", "issue", "--ttl", "soon"], /number and a unit/],
    [["demo", "--devices", "0"], /whole number from 1/],
    [["completion", "tcsh"], /bash, zsh, fish/],
    [["agent", "--dataset", "nofolder"], /name=value/],
  ];
  for (const [args, message] of cases) {
    const { code, err } = await shoal(args);
    t.is(code, 64, args.join(" "));
    t.regex(err, message);
  }
});

test("version and help end with 0", async (t) => {
  const version = await shoal(["version", "--json"]);
  t.is(version.code, 0);
  t.regex((JSON.parse(version.out) as { shoal: string }).shoal, /^\d+\.\d+\.\d+/);
  const help = await shoal(["--help"]);
  t.is(help.code, 0);
  t.regex(help.out, /Exit codes: 0 done, 1 failed, 64 wrong usage/);
});

test("without a control plane commands end with 69 and name the remedy", async (t) => {
  const missing = await shoal(["get", "jobs", "--context", join(scratch(t), "none")]);
  t.is(missing.code, 69);
  t.regex(missing.err, /shoal up/);
  const directory = scratch(t);
  writeFileSync(join(directory, "context.json"), "{}");
  t.is((await shoal(["get", "jobs"], "", { SHOAL_CONTEXT: directory })).code, 65);
});

test("an unreachable service ends with 69", async (t) => {
  const directory = scratch(t);
  const dead = ["127.0.0.1:1"];
  const grpc = { registry: dead, scheduler: dead, telemetry: dead };
  const context = { version: 1, grpc, metrics: {}, natsUrl: "", redisUrl: "", pids: {} };
  writeFileSync(join(directory, "context.json"), JSON.stringify(context));
  const { code, err } = await shoal(["get", "job", "poems", "--context", directory]);
  t.is(code, 69);
  t.regex(err, /^shoal: /);
});

test("apply: a refused manifest ends with 65 and points at the line", async (t) => {
  const context = await fakeScheduler(t);
  const good = await shoal(["apply", "-f", "-", "--context", context], "kind: TrainingJob\n");
  t.deepEqual(good, { code: 0, out: "job/poems created\n", err: "" });
  const bad = await shoal(["apply", "-f", "-", "--context", context], "kind: TrainingJob\nspec:\n  rounds: wrong\n");
  t.is(bad.code, 65);
  t.is(
    bad.err,
    "shoal: manifest: 1 field is not valid\n  manifest:3: spec.rounds: must be a whole number (is wrong)\n",
  );
  t.is((await shoal(["apply", "-f", "/nowhere.yaml", "--context", context])).code, 65);
});

test("get: tables for people, JSON for programs, all pages", async (t) => {
  const context = await fakeScheduler(t);
  const table = await shoal(["get", "jobs", "--context", context]);
  t.is(table.code, 0);
  t.regex(table.out, /^NAME +PHASE +ROUNDS.*\npoems +Running +1\/4.*\npoems +Running +2\/4/);
  const json = await shoal(["get", "jobs", "--json", "--context", context]);
  t.is((JSON.parse(json.out) as unknown[]).length, 2);
  const absent = await shoal(["get", "job", "prose", "--context", context]);
  t.is(absent.code, 1);
  t.regex(absent.err, /there is no job/);
});

test("watch: 0 when the job completes, 1 when it fails; plain lines when not on a terminal", async (t) => {
  const context = await fakeScheduler(t);
  const done = await shoal(["watch", "job", "poems", "--context", context]);
  t.is(done.code, 0);
  t.regex(done.out, /^poems Running {2}round 1\/4 .*\npoems Completed {2}round 4\/4 .*\n$/);
  t.false(done.out.includes("\u001b"));
  t.is((await shoal(["watch", "job", "prose", "--context", context])).code, 1);
});

test("completion scripts name every command and bash accepts its own", async (t) => {
  for (const name of ["bash", "zsh", "fish"]) {
    const { code, out } = await shoal(["completion", name]);
    t.is(code, 0);
    for (const word of ["describe", "uncordon", "replicas", "devices"]) t.true(out.includes(word), `${name} ${word}`);
  }
  const { out } = await shoal(["completion", "bash"]);
  const asked = `${out}\nCOMP_WORDS=(shoal get --context x d); COMP_CWORD=4; _shoal; echo "\${COMPREPLY[*]}"`;
  const bash = spawnSync("bash", ["-c", asked], { encoding: "utf8" });
  t.is(bash.stderr, "");
  // --context's value is no subcommand, so the words are still those of "get".
  t.is(bash.stdout.trim(), "devices device datasets");
});
