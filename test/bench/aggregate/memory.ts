import { mkdtemp, readFile, rm, statfs } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { updateBytes } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { Fleet } from "../../fleet/fleet.js";
import type { BenchResult } from "../report.js";
import {
  closeWorld,
  joinAgent,
  openWorld,
  playRound,
  updateOf,
  type RoundShape,
  type VirtualAgent,
} from "../virtual-agents.js";

const PARAMETERS = 124_000_000;
const QUICK_PARAMETERS = 12_000_000;
/** Updates of a round. */
const FEW = 10;
const MANY = 200;
const QUICK_MANY = 40;
const ROUNDS = 2;
const ROUND_MS = 30 * 60_000;
/** Bars: peak with many updates over that with few, and every peak over the model's size. */
const MOST_GROWTH = 1.1;
const MOST_MODELS = 3;
const KIB = 1024;

interface Peak {
  bytes: number;
  /** Of the process before its first round. */
  idleBytes: number;
  seconds: number[];
}

/** A field of /proc/<pid>/status that is given in kB, in bytes. */
async function statusBytes(pid: number, field: string): Promise<number> {
  const text = await readFile(`/proc/${pid}/status`, "utf8");
  const [, kilobytes] = new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(text) ?? [];
  if (kilobytes === undefined) throw new Error(`/proc/${pid}/status tells no ${field}`);
  return KIB * Number(kilobytes);
}

/** What a case takes on disk: every update in its outbox and in the log, the weights before and after each round. */
function diskBytes({ agents, parameters, codec }: RoundShape): number {
  return 2 * agents * updateBytes(parameters, codecByName(codec) as Codec) + 4 * ROUNDS * 4 * parameters;
}

/** Plays rounds in a control plane of their own and reads the most its aggregator ever held. */
async function measurePeak(shape: RoundShape): Promise<Peak> {
  const dir = await mkdtemp(join(tmpdir(), "shoal-bench-memory-"));
  const fleet = await Fleet.start({ dir, readyMs: 180_000 });
  const agents: VirtualAgent[] = [];
  try {
    const pid = fleet.context().pids["aggregator-0"] ?? 0;
    const world = await openWorld(fleet, dir);
    const token = await fleet.token();
    for (let i = 0; i < shape.agents; i++) agents.push(await joinAgent(token, `bench-${i}`, dir));
    const idleBytes = await statusBytes(pid, "VmHWM");
    const update = updateOf(shape);
    const seconds: number[] = [];
    for (let number = 1; number <= ROUNDS; number++) {
      seconds.push(await playRound(world, shape, `memory-${number}`, agents, update, { mostMs: ROUND_MS }));
    }
    await closeWorld(world);
    // A restart would have begun a count of its own.
    if (fleet.context().pids["aggregator-0"] !== pid) throw new Error("the aggregator was restarted");
    return { bytes: await statusBytes(pid, "VmHWM"), idleBytes, seconds };
  } finally {
    for (const { plane } of agents) await plane.close();
    await fleet.stop();
    await rm(dir, { recursive: true, force: true });
  }
}

const nameOf = ({ agents, parameters, codec }: RoundShape): string => `${agents} x ${parameters / 1e6} M ${codec}`;

function resultsOf(shape: RoundShape, peak: Peak, barred: boolean): BenchResult[] {
  const modelBytes = 4 * shape.parameters;
  const name = nameOf(shape);
  const models = Number((peak.bytes / modelBytes).toFixed(3));
  return [
    { case: name, metric: "aggregator's peak RSS", value: peak.bytes, unit: "bytes" },
    { case: name, metric: "RSS before a round", value: peak.idleBytes, unit: "bytes" },
    { case: name, metric: "peak, times the model", value: models, unit: "", ...(barred ? { most: MOST_MODELS } : {}) },
    ...peak.seconds.map((seconds, i) => {
      const metric = `update to result, round ${i + 1}`;
      return { case: name, metric, value: Number(seconds.toFixed(3)), unit: "s" };
    }),
  ];
}

/**
 * Peak resident memory of a real aggregator process over two rounds, each case in a fresh control plane: with few and with many
 * updates of the same codec, and with few of large ones. Virtual agents send them through the real log. The pair is in topk
 * (64 of 4096 values at 2 bits), as 200 updates of any other codec take 25 GB of disk and more; what the aggregator holds are decoded
 * chunks and sums, whatever the codec. `quick` takes a small model, whose figures are below the process's own size and have no bars.
 */
export async function benchMemory(quick: boolean): Promise<BenchResult[]> {
  const parameters = quick ? QUICK_PARAMETERS : PARAMETERS;
  const pair = [FEW, quick ? QUICK_MANY : MANY].map((agents) => ({ agents, parameters, codec: "topk" }));
  const large = ["int8", "fp32"].map((codec) => ({ agents: FEW, parameters, codec }));
  const peaks: number[] = [];
  const results: BenchResult[] = [];
  for (const shape of [...pair, ...large]) {
    const { bavail, bsize } = await statfs(tmpdir());
    if (bavail * bsize < diskBytes(shape)) {
      console.log(`${nameOf(shape)}: left out, ${diskBytes(shape)} bytes of disk are not free`);
      continue;
    }
    const peak = await measurePeak(shape);
    console.log(`${nameOf(shape)}: ${(peak.bytes / 1e6).toFixed(0)} MB, rounds of ${peak.seconds.join(", ")} s`);
    if (shape.codec === "topk") peaks.push(peak.bytes);
    results.push(...resultsOf(shape, peak, !quick));
  }
  const [few, many] = peaks;
  if (few === undefined || many === undefined) return results;
  const growth = Number((many / few).toFixed(3));
  const name = `${pair[1]?.agents ?? 0} updates, not ${FEW}`;
  const bar = quick ? {} : { most: MOST_GROWTH };
  return [...results, { case: name, metric: "peak RSS, times as much", value: growth, unit: "", ...bar }];
}
