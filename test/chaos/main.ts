import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { createRng } from "#common/domain/rng.js";
import { type BenchResult, report } from "../bench/report.js";
import { addressesJob, writeAddresses } from "../fleet/addresses.js";
import { Fleet } from "../fleet/fleet.js";
import { drawFaults, type Fault, type Victim } from "./faults.js";
import { verify } from "./verify.js";

const DEVICES = 4;
const ROUNDS_PER_JOB = 12;
const STEPS = 12;

function killPid(pid: number | undefined): boolean {
  if (pid === undefined || pid <= 1) return false;
  try {
    process.kill(pid, "SIGKILL");
    return true;
  } catch {
    return false;
  }
}

/** SIGKILLs every process of the run and brings all of it up again on the same directories. */
async function killEverything(fleet: Fleet): Promise<boolean> {
  const context = fleet.context();
  killPid(fleet.upPid);
  for (const pid of Object.values(context.pids)) killPid(pid);
  for (const { process: agent } of fleet.devices.values()) killPid(agent.pid);
  await fleet.up();
  for (const name of [...fleet.devices.keys()]) fleet.restartDevice(name);
  return true;
}

/** Does what the fault says; false if there was nothing to kill at that moment. */
async function strike(fleet: Fleet, fault: Fault): Promise<boolean> {
  if (fault.victim === "everything") return killEverything(fleet);
  if (fault.victim === "agent") {
    const names = [...fleet.devices.keys()];
    const name = names[fault.index % names.length] ?? "";
    const killed = killPid(fleet.devices.get(name)?.process.pid);
    await sleep(fault.downMs);
    fleet.restartDevice(name);
    return killed;
  }
  const units = Object.entries(fleet.context().pids).filter(
    ([unit]) => unit === fault.victim || unit.startsWith(`${fault.victim}-`),
  );
  return killPid(units[fault.index % Math.max(1, units.length)]?.[1]);
}

/** One seeded run: kills at random moments of running jobs, then the books. */
async function run(seed: number, kills: number, replicas: number, keep: boolean): Promise<BenchResult[]> {
  const root = mkdtempSync(join(tmpdir(), "shoal-chaos-"));
  const dir = join(root, "shoal");
  const folders = writeAddresses(join(root, "data"), DEVICES);
  const fleet = await Fleet.start({ dir, replicas, env: { SHOAL_LOG_RETAIN_ROUNDS: "0", SHOAL_HEARTBEAT_MS: "1000" } });
  const counts = new Map<Victim, number>();
  const jobs: string[] = [];
  try {
    const token = await fleet.token();
    folders.forEach((dataDir, i) => fleet.startDevice({ name: `device-${i + 1}`, dataset: "sotu", dataDir }, token));
    await fleet.waitForDevices(DEVICES);
    const nextJob = async (): Promise<void> => {
      const name = `chaos-${jobs.length + 1}`;
      await fleet.apply(addressesJob(name, { rounds: ROUNDS_PER_JOB, devices: DEVICES, steps: STEPS }));
      jobs.push(name);
    };
    await nextJob();
    for (const fault of drawFaults(createRng(seed), kills)) {
      await sleep(fault.pauseMs);
      const last = jobs.at(-1) ?? "";
      const state = await fleet.job(last).catch(() => undefined);
      if (state?.status?.phase === "Completed") await nextJob();
      // A victim that is just being started again is waited for, so that every kill is one.
      let killed = false;
      for (let attempt = 0; attempt < 60 && !killed; attempt++) {
        killed = await strike(fleet, fault);
        if (!killed) await sleep(250);
      }
      if (killed) counts.set(fault.victim, (counts.get(fault.victim) ?? 0) + 1);
      process.stdout.write(
        `kill ${[...counts.values()].reduce((a, b) => a + b, 0)}/${kills} ${fault.victim}, ${last} round ${state?.status?.completedRounds ?? "?"}\n`,
      );
    }
    for (const name of jobs) {
      const job = await fleet.waitForJob(name, 600_000);
      if (job.status?.phase !== "Completed") throw new Error(`${name} ended ${job.status?.phase ?? "unknown"}`);
    }
    const found = await verify(dir, fleet.context().natsUrl, [...fleet.devices.keys()], jobs);
    for (const problem of [...found.lost, ...found.doubled, ...found.mismatched]) console.error(`problem: ${problem}`);
    const figure = (metric: string, value: number): BenchResult => ({
      case: `seed ${seed}`,
      metric,
      value,
      unit: "count",
    });
    return [
      ...[...counts].map(([victim, n]) => figure(`kills ${victim}`, n)),
      figure(
        "kills",
        [...counts.values()].reduce((a, b) => a + b, 0),
      ),
      figure("jobs completed", jobs.length),
      figure("rounds", found.rounds),
      figure("commits", found.commits),
      figure("folded", found.folded),
      ...Object.entries(found.refused).map(([reason, n]) => figure(`refused ${reason}`, n)),
      { ...figure("lost", found.lost.length), bound: 0 },
      { ...figure("counted twice", found.doubled.length), bound: 0 },
      { ...figure("digest mismatches", found.mismatched.length), bound: 0 },
    ];
  } finally {
    await fleet.stop();
    if (keep) console.log(`kept ${root}`);
    else rmSync(root, { recursive: true, force: true });
  }
}

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    kills: { type: "string", default: "100" },
    replicas: { type: "string", default: "1" },
    json: { type: "string" },
    keep: { type: "boolean", default: false },
  },
});
const seed = Number(values.seed);
const kills = Number(values.kills);
const replicas = Number(values.replicas);
if (![seed, kills, replicas].every((n) => Number.isInteger(n) && n >= 0)) {
  console.error("usage: npm run chaos -- [--seed N] [--kills N] [--replicas N] [--json FILE] [--keep]");
  process.exitCode = 64;
} else {
  const results = await run(seed, kills, replicas, values.keep);
  report("chaos", results, values.json);
  const landed = results.find((r) => r.metric === "kills")?.value ?? 0;
  if (landed < kills) {
    console.error(`${landed} of ${kills} kills found their victim alive`);
    process.exitCode = 1;
  }
}
