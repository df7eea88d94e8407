import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import test from "ava";
import { updateLength } from "#common/domain/fragment.js";
import { importCheckpoint } from "#common/graph/checkpoint.js";
import { updateBytes } from "#common/tensor/chunk.js";
import { codecByName } from "#common/tensor/codec.js";
import { addressesJob, writeAddresses } from "../fleet/addresses.js";
import { exportFiles } from "../fleet/export.js";
import { CLI, Fleet, unary } from "../fleet/fleet.js";
import { leakedPieces, Recorder } from "../fleet/recorder.js";

const DEVICES = 4;
const root = mkdtempSync(join(tmpdir(), "shoal-e2e-"));
let fleet: Fleet;
let recorder: Recorder;
let isUp = false;
let folders: string[];

interface Ran {
  code: number | null;
  out: string;
  err: string;
}

function run(command: string, args: readonly string[], input = ""): Promise<Ran> {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { stdio: "pipe" });
    let out = "";
    let err = "";
    child.stdout.on("data", (data) => (out += String(data)));
    child.stderr.on("data", (data) => (err += String(data)));
    child.on("error", fail);
    child.on("close", (code) => done({ code, out, err }));
    child.stdin.end(input);
  });
}

/** gRPC by buf curl: a foreign client that knows nothing but the address (and, with a schema, the proto files). */
function bufCurl(address: string, method: string, data: unknown, schema?: string): Promise<Ran> {
  const args = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", JSON.stringify(data)];
  if (schema !== undefined) args.push("--schema", schema);
  return run("node_modules/.bin/buf", [...args, `http://${address}/${method}`]);
}

const scheduler = (): string => fleet.context().grpc.scheduler[0] ?? "";
const aggregator = (): string => fleet.context().grpc.aggregator[0] ?? "";
const registry = (): string => fleet.context().grpc.registry[0] ?? "";

test.before(async () => {
  recorder = await Recorder.open();
  fleet = await Fleet.start({
    dir: join(root, "shoal"),
    replicas: 2,
    env: { SHOAL_PUBLIC_NATS_URLS: recorder.url, SHOAL_HEARTBEAT_MS: "1000" },
  });
  isUp = true;
  recorder.target = fleet.context().natsUrl;
  folders = writeAddresses(join(root, "data"), DEVICES);
  const token = await fleet.token();
  folders.forEach((dataDir, i) => fleet.startDevice({ name: `device-${i + 1}`, dataset: "sotu", dataDir }, token));
  await fleet.waitForDevices(DEVICES);
});

test.after.always(async () => {
  if (isUp) await fleet.stop();
  await recorder.close();
  rmSync(root, { recursive: true, force: true });
});

test.serial(
  "a job is trained to its end while a replica of each service is killed, and no round is planned twice",
  async (t) => {
    const rounds = 5;
    await fleet.apply(addressesJob("main-job", { rounds, devices: DEVICES, steps: 30, down: "int8" }));
    const killed = new Set<string>();
    for (const unit of ["registry-0", "scheduler-1", "aggregator-0", "telemetry-1", "scheduler-0", "aggregator-1"]) {
      await sleep(700);
      const pid = fleet.context().pids[unit];
      if (pid !== undefined) {
        process.kill(pid, "SIGKILL");
        killed.add(unit);
      }
    }
    t.true(killed.size >= 4);
    const job = await fleet.waitForJob("main-job", 400_000);
    t.is(job.status?.phase, "Completed");
    const { rounds: listed } = await fleet.withJobs((jobs) =>
      unary(jobs, jobs.listRounds.bind(jobs), { job: "main-job", pageSize: 100, pageToken: "" }),
    );
    t.deepEqual(
      listed.map((r) => r.round?.spec?.number),
      [1, 2, 3, 4, 5, 6],
      "five training rounds and the evaluation",
    );
    for (const { round, result } of listed) {
      t.is(round?.status?.phase, "Completed");
      t.is(round?.status?.attempt, 0, "planned once");
      t.is(result?.folded.length, DEVICES);
      t.is(result?.refused.length, 0);
    }
    // Each device fetches whole weights once and then a quarter of them a round; a call that was cut off may add to it.
    const fetched = listed.slice(1, 5).reduce((sum, { result }) => sum + (result?.bytesDown ?? Infinity), 0);
    t.true(fetched < 0.5 * 4 * DEVICES * (job.status?.weights?.sizeBytes ?? 0), `${fetched} bytes down`);
    t.true(listed.slice(0, 5).every(({ result }) => (result?.delta?.blob?.sizeBytes ?? 0) > 0));
    const losses = listed.map((r) => r.result?.evalLoss ?? Number.NaN);
    t.true((losses.at(-1) ?? Number.NaN) < (losses[0] ?? Number.NaN) - 0.3, `held-out losses ${losses.join(" ")}`);
  },
);

test.serial("a round replayed from its log prints the published digest, and the job's lineage holds", async (t) => {
  const shoal = (...args: string[]): Promise<Ran> =>
    run(process.execPath, [CLI, ...args, "--context", join(root, "shoal")]);
  const { rounds } = await fleet.withJobs((jobs) =>
    unary(jobs, jobs.listRounds.bind(jobs), { job: "main-job", pageSize: 100, pageToken: "" }),
  );
  const replayed = await shoal("replay", "main-job", "5");
  t.is(replayed.code, 0, replayed.err);
  t.regex(replayed.out, new RegExp(`^weights: +${rounds[4]?.result?.weights?.digest ?? "?"}\n`));
  const retired = await shoal("replay", "main-job", "1");
  t.is(retired.code, 1);
  t.regex(retired.err, /does not hold round main-job-1 any more/);
  const verified = await shoal("verify", "main-job", "--replay");
  t.is(verified.code, 0, verified.out + verified.err);
  t.regex(verified.out, /\nround 5 +ok .* replay\n/);
  t.regex(verified.out, /\njob main-job +ok .* origin model\n/);
  const foreign = await bufCurl(aggregator(), "shoal.v1.AggregatorService/ReplayRound", { job: "main-job", number: 5 });
  t.regex(foreign.out, /"equal": ?true/, foreign.err);
  const listed = await run("node_modules/.bin/buf", [
    "curl",
    "--protocol",
    "grpc",
    "--http2-prior-knowledge",
    "--list-methods",
    `http://${aggregator()}`,
  ]);
  t.true(listed.out.includes("shoal.v1.AggregatorService/VerifyJob"), listed.err);
});

test.serial("the trained model streams out as a checkpoint that reads back", async (t) => {
  const files = await fleet.withModels((models) => exportFiles(models, "main-job"));
  const checkpoint = importCheckpoint(
    files.get("config.json") ?? "",
    files.get("model.safetensors") ?? new Uint8Array(),
  );
  t.true(checkpoint.ok);
});

test.serial("telemetry tells the series and the events of the job", async (t) => {
  const points = await fleet.withTelemetry((telemetry) =>
    unary(telemetry, telemetry.querySeries.bind(telemetry), {
      job: "main-job",
      metrics: ["train_loss"],
      device: "",
      fromRound: 1,
      pageSize: 1000,
      pageToken: "",
    }),
  );
  const whole = points.points.filter((p) => p.device === "");
  t.deepEqual(whole.map((p) => p.round).sort(), [1, 2, 3, 4, 5]);
  t.is(points.points.filter((p) => p.device !== "").length, 5 * DEVICES);
});

test.serial("promtool finds nothing wrong with any service's metrics", async (t) => {
  const pages = Object.entries(fleet.context().metrics).flatMap(([name, list]) =>
    list.map((address) => ({ name, address })),
  );
  t.is(pages.length, 8);
  for (const { name, address } of pages) {
    const page = await (await fetch(`http://${address}/metrics`)).text();
    t.true(page.includes("shoal_"), name);
    const checked = await run("promtool", ["check", "metrics"], page);
    t.is(checked.code, 0, `${name}: ${checked.out}${checked.err}`);
    t.is(checked.out + checked.err, "", name);
  }
});

test.serial("buf curl applies, gets and explains with reflection and without", async (t) => {
  const manifest = addressesJob("by-buf", { rounds: 1, devices: DEVICES });
  const applied = await bufCurl(scheduler(), "shoal.v1.JobService/Apply", { manifest });
  t.is(applied.code, 0, applied.err);
  const again = await bufCurl(scheduler(), "shoal.v1.JobService/Apply", { manifest }, "proto");
  t.is(again.code, 0, again.err);
  t.is((JSON.parse(again.out) as { outcome: string }).outcome, "unchanged");
  const watched = await bufCurl(scheduler(), "shoal.v1.JobService/Explain", { name: "by-buf" });
  t.is(watched.code, 0, watched.err);
  const models = await bufCurl(registry(), "shoal.v1.ModelService/ListModels", {});
  t.true(models.out.includes("main-job"), models.err);
  const listed = await run("node_modules/.bin/buf", [
    "curl",
    "--protocol",
    "grpc",
    "--http2-prior-knowledge",
    "--list-methods",
    `http://${scheduler()}`,
  ]);
  t.true(listed.out.includes("shoal.v1.JobService/Watch"), listed.err);
  t.true(listed.out.includes("grpc.health.v1.Health/Check"), listed.out);
  t.is((await fleet.waitForJob("by-buf", 240_000)).status?.phase, "Completed");
});

test.serial(
  "a Python client with stubs from the proto files applies, watches to the end and streams the model out",
  async (t) => {
    const manifest = join(root, "by-python.json");
    writeFileSync(manifest, addressesJob("by-python", { rounds: 2, devices: DEVICES, strategy: "scaffold" }));
    const out = join(root, "python-model");
    mkdirSync(out);
    const script = resolve("test/e2e/foreign/client.py");
    const ran = await run("/usr/bin/python3", [script, resolve("proto"), scheduler(), registry(), manifest, out]);
    t.is(ran.code, 0, ran.err);
    const said = JSON.parse(ran.out) as {
      outcome: string;
      phases: string[];
      sizes: Record<string, number>;
      refused: string;
    };
    t.is(said.outcome, "created");
    t.is(said.phases.at(-1), "Completed");
    t.is(said.refused, "INVALID_ARGUMENT");
    const read = importCheckpoint(readFileSync(join(out, "config.json")), readFileSync(join(out, "model.safetensors")));
    t.true(read.ok);
  },
);

test.serial("a job with control variates on the devices was folded, and can be folded again", async (t) => {
  const verified = await run(process.execPath, [
    CLI,
    "verify",
    "by-python",
    "--replay",
    "--json",
    "--context",
    join(root, "shoal"),
  ]);
  t.is(verified.code, 0, verified.out + verified.err);
  const { rounds } = JSON.parse(verified.out) as { rounds: { checks: { name: string; outcome: string }[] }[] };
  for (const { checks } of rounds.slice(0, 3)) {
    const held = checks.filter(({ outcome }) => outcome === "Verified").map(({ name }) => name);
    t.true(
      ["commits", "outerState", "replay"].every((name) => held.includes(name)),
      JSON.stringify(checks),
    );
  }
  const { rounds: listed } = await fleet.withJobs((jobs) =>
    unary(jobs, jobs.listRounds.bind(jobs), { job: "by-python", pageSize: 10, pageToken: "" }),
  );
  const [first, second] = listed;
  t.is(second?.round?.spec?.task?.control?.digest, first?.result?.outerState?.digest);
  t.is(second?.result?.folded.length, DEVICES);
  t.is(second?.result?.folded[0]?.manifest?.values, 2 * (second?.round?.spec?.task?.parameters ?? 0));
});

test.serial("a round takes the first two updates, and those that come later count in later rounds", async (t) => {
  await fleet.apply(
    addressesJob("buffered", { strategy: "fedbuff", buffer: 2, minCohort: 2, rounds: 5, devices: DEVICES, steps: 10 }),
  );
  t.is((await fleet.waitForJob("buffered", 300_000)).status?.phase, "Completed");
  const { rounds } = await fleet.withJobs((jobs) =>
    unary(jobs, jobs.listRounds.bind(jobs), { job: "buffered", pageSize: 100, pageToken: "" }),
  );
  const folded = rounds.slice(0, 5).map(({ result }) => result?.folded ?? []);
  for (const updates of folded.slice(0, -1)) t.is(updates.length, 2);
  t.true(folded.flat().some(({ staleness }) => staleness > 0));
  const seqs = folded.flat().map(({ commitSeq }) => commitSeq);
  t.is(new Set(seqs).size, seqs.length, "each counts once");
  const args = ["verify", "buffered", "--replay", "--context", join(root, "shoal")];
  const verified = await run(process.execPath, [CLI, ...args]);
  t.is(verified.code, 0, verified.out + verified.err);
  t.regex(verified.out, /\nround 5 +ok .* replay\n/);
});

test.serial("a job sends a fragment a round, and its devices train on while it travels", async (t) => {
  const parameters = { fragments: 2, overlapSteps: 4 };
  const [rounds, steps] = [3, 8];
  await fleet.apply(
    addressesJob("streamed", { strategy: "streamingDiloco", parameters, rounds, steps, devices: DEVICES, width: 32 }),
  );
  t.is((await fleet.waitForJob("streamed", 240_000)).status?.phase, "Completed");
  const { rounds: listed } = await fleet.withJobs((jobs) =>
    unary(jobs, jobs.listRounds.bind(jobs), { job: "streamed", pageSize: 100, pageToken: "" }),
  );
  const int8 = codecByName("int8");
  for (const { round, result } of listed.slice(0, rounds)) {
    const task = round?.spec?.task;
    if (task === undefined || int8 === undefined) return t.fail();
    const values = updateLength(task);
    t.true(values > 0 && values < task.parameters);
    t.is(result?.bytesUp, DEVICES * updateBytes(values, int8));
    t.is(task.overlapSteps, task.number < rounds ? 4 : 0);
    for (const { manifest } of result?.folded ?? []) t.like(manifest, { values, localSteps: steps });
    // Exactly one fragment, unless a device had to fetch or train again.
    const fetched = 4 * DEVICES * updateLength({ ...task, fragment: 1 - task.fragment });
    if (task.number > 1)
      t.true((result?.bytesDown ?? Infinity) < fetched + 4 * values, `${result?.bytesDown}, ${fetched}`);
  }
  for (const name of fleet.devices.keys()) {
    const log = readFileSync(join(root, "shoal", `${name}.out`), "utf8");
    const times = log.split("worked ahead of the next round").length - 1;
    t.true(times >= rounds - 1, `${name} worked ahead of every round but the first: ${times}`);
  }
  const args = ["verify", "streamed", "--replay", "--context", join(root, "shoal")];
  const verified = await run(process.execPath, [CLI, ...args]);
  t.is(verified.code, 0, verified.out + verified.err);
  t.regex(verified.out, new RegExp(`\\nround ${rounds} +ok .* replay\\n`));
});

test.serial("nothing of any device's text was on the wire", (t) => {
  const captured = Buffer.concat([...recorder.up, ...recorder.down]);
  t.true(captured.length > 1_000_000, "the agents' traffic went through the recorder");
  const text = folders
    .map((folder) =>
      readdirSync(folder)
        .map((f) => readFileSync(join(folder, f), "utf8"))
        .join("\n"),
    )
    .join("\n");
  t.deepEqual(leakedPieces(captured, text), []);
  const planted = Buffer.concat([captured, Buffer.from(Buffer.from(text.slice(5000, 5060)).toString("base64"))]);
  t.true(leakedPieces(planted, text).length > 0, "the search itself finds a planted piece");
});

test.serial("after SIGKILL of everything, shoal up on the same directory goes on with the same round", async (t) => {
  await fleet.apply(addressesJob("survivor", { rounds: 3, devices: DEVICES, steps: 120 }));
  const until = Date.now() + 240_000;
  let before;
  do {
    await sleep(100);
    before = await fleet.withJobs((jobs) => unary(jobs, jobs.explain.bind(jobs), { name: "survivor" }));
  } while (before.round?.status?.phase !== "Training" && Date.now() < until);
  const pids = [...Object.values(fleet.context().pids), ...[...fleet.devices.values()].map((d) => d.process.pid ?? 0)];
  for (const pid of pids.filter((p) => p > 1)) process.kill(pid, "SIGKILL");
  await fleet.up();
  const after = await fleet.withJobs((jobs) => unary(jobs, jobs.explain.bind(jobs), { name: "survivor" }));
  t.is(after.round?.metadata?.uid, before.round?.metadata?.uid, "the same round");
  t.deepEqual(after.round?.status?.assignments, before.round?.status?.assignments, "the same plan");
  for (const name of [...fleet.devices.keys()]) fleet.restartDevice(name);
  const job = await fleet.waitForJob("survivor", 300_000);
  t.is(job.status?.phase, "Completed");
  t.is(job.status?.completedRounds, 3);
});
