import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL, fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { messageOf } from "#common/adapters/coded-error.js";
import { createRng } from "#common/domain/rng.js";
import { type BenchResult, report } from "../bench/report.js";
import { writeAddresses } from "../fleet/addresses.js";
import { Fleet, type FleetOptions } from "../fleet/fleet.js";
import { markdown, tabulate, type Row } from "./books.js";
import { Cluster } from "./cluster.js";
import { drawFaults, FAULT_KINDS, KIND_NAMES, type FaultKind, type KindName, type Need } from "./faults.js";
import { chaosJob } from "./jobs.js";
import { Mounts } from "./mounts.js";
import { Network } from "./network.js";
import { Run } from "./run.js";
import { verify, type Verified } from "./verify.js";

const DEVICES = 4;
const MB = 1024 * 1024;
const AGENT_DISK_BYTES = 256 * MB;
/** A quarter of it is the log's, which has to hold all rounds of a run: what is short of space gives up old ones, and they cannot be replayed. */
const NATS_DISK_BYTES = 2048 * MB;
const JOB_MS = 900_000;
/** Also on a machine that has much else to do. */
const READY_MS = 240_000;
const STARTS = 3;
/** Seen: "Snapshot corrupt, too short" at its next start, and once it leads the cluster no stream is known any more. */
const TORN = "nats-server 2.9 in a cluster may tear its metadata on a full disk";
const CLOCK = fileURLToPath(new URL("shifted-clock.js", import.meta.url));

interface Options {
  readonly seed: number;
  readonly faults: number;
  readonly only: readonly KindName[];
  readonly paceMs: number;
  readonly durationMs: number;
  readonly replicas: number;
  readonly natsNodes: number;
  readonly rounds: number;
  readonly keep: boolean;
}

/** What the machine gives, and why it does not give the rest. */
interface Ground {
  readonly root: string;
  readonly dir: string;
  readonly clocks: string;
  readonly network: Network | undefined;
  readonly mounts: Mounts | undefined;
  readonly missing: Map<Need, string>;
  close(keep: boolean): void;
}

function attempt<T>(missing: Map<Need, string>, need: Need, wanted: boolean, make: () => T): T | undefined {
  if (!wanted) return undefined;
  try {
    return make();
  } catch (error) {
    missing.set(need, messageOf(error).trim().split("\n").at(-1) ?? "");
    return undefined;
  }
}

function prepareGround(options: Options): Ground {
  const root = mkdtempSync(join(tmpdir(), "shoal-chaos-"));
  const dir = join(root, "shoal");
  const missing = new Map<Need, string>();
  if (options.natsNodes === 1) missing.set("cluster", "only with --nats-nodes 3");
  const wants = (need: Need): boolean => options.only.some((name) => kindOf(name).needs === need);
  const network = attempt(missing, "network", wants("network"), () => Network.open());
  const mounts = attempt(missing, "mounts", wants("mounts"), () => {
    const made = new Mounts();
    const { natsNodes } = options;
    const servers = natsNodes === 1 ? ["nats"] : Array.from({ length: natsNodes }, (_, i) => `nats-${i}`);
    for (const server of servers) made.add(join(dir, server), NATS_DISK_BYTES);
    for (let i = 1; i <= DEVICES; i++) made.add(join(dir, `state-device-${i}`), AGENT_DISK_BYTES);
    return made;
  });
  const close = (keep: boolean): void => {
    network?.close();
    if (keep) console.log(`kept ${root}`);
    else {
      mounts?.close();
      rmSync(root, { recursive: true, force: true });
    }
  };
  return { root, dir, clocks: join(root, "clocks"), network, mounts, missing, close };
}

const kindOf = (name: KindName): FaultKind => FAULT_KINDS[name];

/** Kinds that are asked for and cannot be had here, each with the reason. */
function leftOut(options: Options, missing: ReadonlyMap<Need, string>): Map<KindName, string> {
  return new Map(
    options.only.flatMap((name): [KindName, string][] => {
      const { needs } = kindOf(name);
      const torn = name === "disk-nats" && options.natsNodes > 1 ? TORN : undefined;
      const why = torn ?? (needs && missing.get(needs));
      return why === undefined ? [] : [[name, why]];
    }),
  );
}

/** The supervisor gives a unit a minute to be ready, which a busy machine may not have. */
async function startControlPlane(options: FleetOptions): Promise<Fleet> {
  for (let start = 1; ; start++) {
    try {
      return await Fleet.start(options);
    } catch (error) {
      if (start === STARTS) throw error;
      console.error(`starting again: ${messageOf(error)}`);
    }
  }
}

async function startFleet(ground: Ground, options: Options): Promise<Fleet> {
  const folders = writeAddresses(join(ground.root, "data"), DEVICES);
  mkdirSync(ground.clocks);
  const fleet = await startControlPlane({
    dir: ground.dir,
    readyMs: READY_MS,
    replicas: options.replicas,
    natsNodes: options.natsNodes,
    ...(ground.network === undefined ? {} : { natsHost: ground.network.host }),
    env: {
      SHOAL_LOG_RETAIN_ROUNDS: "0",
      SHOAL_HEARTBEAT_MS: "1000",
      // What fits on the small file systems, three times in a cluster's reckoning.
      SHOAL_UPDATES_MAX_BYTES: String(NATS_DISK_BYTES / 4),
      SHOAL_CHAOS_CLOCKS: ground.clocks,
      NODE_OPTIONS: `--import=${pathToFileURL(CLOCK).href}`,
    },
  });
  try {
    const token = await fleet.token();
    folders.forEach((dataDir, i) => {
      const name = `device-${i + 1}`;
      const launcher = ground.network?.add(name) ?? [];
      fleet.startDevice({ name, dataset: "sotu", dataDir, launcher }, token);
    });
    await fleet.waitForDevices(DEVICES, READY_MS);
    return fleet;
  } catch (error) {
    await fleet.stop();
    throw error;
  }
}

interface Outcome {
  readonly rows: readonly Row[];
  readonly results: readonly BenchResult[];
}

function toOutcome(
  options: Options,
  run: Run,
  failed: readonly string[],
  found: Verified,
  left: Map<KindName, string>,
): Outcome {
  const rows = tabulate(run.entries, found, left);
  const figure = (of: string, metric: string, value: number): BenchResult => ({
    case: of,
    metric,
    value,
    unit: "count",
  });
  const seed = `seed ${options.seed}`;
  const results = rows.flatMap(({ title, left: _, ...counts }) =>
    Object.entries(counts).flatMap(([metric, value]) => (value === 0 ? [] : [figure(title, metric, value)])),
  );
  results.push(
    figure(seed, "jobs completed", run.jobs.length - failed.length),
    figure(seed, "rounds", found.rounds),
    figure(seed, "commits", found.commits),
    figure(seed, "folded", found.folded),
    ...Object.entries(found.refused).map(([reason, n]) => figure(seed, `refused ${reason}`, n)),
    figure(seed, "agents that ended unasked", run.unasked.length),
    { ...figure(seed, "jobs failed", failed.length), bound: 0 },
    { ...figure(seed, "lost", found.lost.length), bound: 0 },
    { ...figure(seed, "counted twice", found.doubled.length), bound: 0 },
    { ...figure(seed, "digest mismatches", found.mismatched.length), bound: 0 },
  );
  return { rows, results };
}

/** One seeded run: faults at random moments of running jobs, then the books. */
async function perform(options: Options): Promise<Outcome> {
  const ground = prepareGround(options);
  const left = leftOut(options, ground.missing);
  for (const [kind, why] of left) console.error(`${kind} is left out: ${why}`);
  let fleet: Fleet | undefined;
  let cluster: Cluster | undefined;
  const end = (): void => {
    console.error("interrupted: ending what was started");
    void Promise.resolve(fleet?.stop()).finally(() => {
      ground.close(options.keep);
      process.exit(1);
    });
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, end);
  try {
    fleet = await startFleet(ground, options);
    const { natsUrl } = fleet.context();
    if (options.natsNodes > 1) cluster = await Cluster.connect(ground.dir, natsUrl);
    const { network, mounts, clocks } = ground;
    const run = new Run({ fleet, network, mounts, cluster, clocks }, (name, number) =>
      chaosJob(name, number, { rounds: options.rounds, devices: DEVICES }),
    );
    const kinds = options.only.filter((kind) => !left.has(kind));
    const faults = drawFaults(createRng(options.seed), options.faults, kinds, options.paceMs);
    await run.strikeAll(faults, Date.now() + options.durationMs);
    const failed = await run.finish(JOB_MS);
    const found = await verify(ground.dir, natsUrl.split(","), [...fleet.devices.keys()], run.jobs);
    for (const problem of [...failed, ...found.lost, ...found.doubled, ...found.mismatched])
      console.error(`problem: ${problem}`);
    return toOutcome(options, run, failed, found, left);
  } catch (error) {
    if (fleet !== undefined) console.error(fleet.lastWords());
    throw error;
  } finally {
    await cluster?.close();
    await fleet?.stop();
    ground.close(options.keep);
  }
}

const USAGE = `usage: npm run chaos -- [--seed N] [--faults N] [--only KIND,...] [--pace MS] [--duration SECONDS]
  [--replicas N] [--nats-nodes 1|3|5] [--rounds N] [--json FILE] [--table FILE] [--keep]
kinds: ${KIND_NAMES.join(", ")}`;

function readOptions(): { options: Options; json: string | undefined; table: string | undefined } | undefined {
  const text = { type: "string" } as const;
  const { values } = parseArgs({
    options: {
      seed: { ...text, default: "1" },
      faults: { ...text, default: "100" },
      only: { ...text, default: KIND_NAMES.join(",") },
      pace: { ...text, default: "1350" },
      duration: { ...text, default: "86400" },
      replicas: { ...text, default: "1" },
      "nats-nodes": { ...text, default: "1" },
      rounds: { ...text, default: "12" },
      json: text,
      table: text,
      keep: { type: "boolean", default: false },
    },
  });
  const only = values.only.split(",").flatMap((name) => KIND_NAMES.filter((kind) => kind === name));
  const options = {
    seed: Number(values.seed),
    faults: Number(values.faults),
    only,
    paceMs: Number(values.pace),
    durationMs: Number(values.duration) * 1000,
    replicas: Number(values.replicas),
    natsNodes: Number(values["nats-nodes"]),
    rounds: Number(values.rounds),
    keep: values.keep,
  };
  const { seed, faults, paceMs, durationMs, replicas, natsNodes, rounds } = options;
  const numbers = [seed, faults, paceMs, durationMs, replicas, natsNodes, rounds];
  if (!numbers.every((n) => Number.isInteger(n) && n >= 0)) return undefined;
  if (only.length !== values.only.split(",").length) return undefined;
  return { options, json: values.json, table: values.table };
}

const read = readOptions();
if (read === undefined) {
  console.error(USAGE);
  process.exitCode = 64;
} else {
  const { rows, results } = await perform(read.options);
  console.log(markdown(rows));
  report("chaos", [...results], read.json);
  if (read.table !== undefined) writeFileSync(read.table, markdown(rows));
  const struck = rows.at(-1)?.struck ?? 0;
  if (struck < read.options.faults) {
    console.error(`${struck} of ${read.options.faults} faults struck`);
    process.exitCode = 1;
  }
}
