import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Fleet } from "../fleet/fleet.js";
import { report, type BenchResult } from "./report.js";
import { measureBound } from "./round-bound.js";
import {
  closeWorld,
  joinAgent,
  openWorld,
  playRound,
  updateOf,
  type RoundShape,
  type VirtualAgent,
  type World,
} from "./virtual-agents.js";

/** A round as it is measured. */
interface Case extends RoundShape {
  name: string;
  /** Bar, seconds. */
  most: number;
  /** Flower 1.28's legacy and SuperLink figures of the issue, seconds; quoted, not measured here. */
  flower?: readonly [number, number];
}

/** The largest fleet comes last: devices join when a case needs them, and none idles beside the others. */
const CASES: readonly Case[] = [
  { name: "10 x 1 kB", agents: 10, parameters: 250, codec: "fp32", most: 0.15, flower: [0.028, 9.4] },
  { name: "10 x 12 M int8", agents: 10, parameters: 12_000_000, codec: "int8", most: 1 },
  { name: "10 x 12 M fp32", agents: 10, parameters: 12_000_000, codec: "fp32", most: 2, flower: [7.3, 21] },
  { name: "2 x 124 M fp32", agents: 2, parameters: 124_000_000, codec: "fp32", most: 8, flower: [24, 24] },
  { name: "200 x 1 kB", agents: 200, parameters: 250, codec: "fp32", most: 1 },
];
const ROUNDS = 5;

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? NaN;

async function measure(
  world: World,
  one: Case,
  agents: readonly VirtualAgent[],
  rounds: number,
): Promise<BenchResult[]> {
  const update = updateOf(one);
  const seconds: number[] = [];
  const bounds: number[] = [];
  const slug = one.name.replace(/[^a-z0-9]+/gi, "-").toLowerCase();
  for (let number = 0; number <= rounds; number++) {
    const cohort = agents.slice(0, one.agents);
    let bound = 0;
    const before = async (round: string): Promise<void> => {
      bound = await measureBound(world, cohort, round, update);
    };
    const taken = await playRound(world, one, `bench-${slug}-${number}`, cohort, update, { before });
    // The first one warms up.
    if (number > 0) seconds.push(taken);
    if (number > 0) bounds.push(bound);
    console.log(`${one.name}: ${taken.toFixed(3)} s, bound ${bound.toFixed(3)} s${number === 0 ? " (warm-up)" : ""}`);
  }
  const result = { case: one.name, metric: "update to durable result", unit: "s" };
  const quoted = ["legacy", "SuperLink"].flatMap((api, i): BenchResult[] => {
    const value = one.flower?.[i];
    return value === undefined ? [] : [{ ...result, metric: `Flower 1.28 ${api}, as quoted`, value }];
  });
  const ratios = seconds.map((taken, i) => taken / (bounds[i] ?? NaN));
  const bound = {
    metric: "bound: the same bytes logged, read once and hashed",
    value: Number(median(bounds).toFixed(3)),
  };
  return [
    { ...result, value: Number(median(seconds).toFixed(3)), most: one.most },
    { ...result, ...bound },
    { ...result, metric: "times the bound", value: Number(median(ratios).toFixed(2)), unit: "" },
    ...quoted,
  ];
}

/**
 * Whole rounds on real processes: `shoal up`, and virtual agents in this process that have joined, spooled their updates and
 * speak the devices' protocol, but do not train. Measured is the time from updates that lie in the outboxes to the durable
 * RoundResult. `--quick` leaves out the large model and takes three rounds of a case instead of five.
 */
export async function round({
  json,
  quick,
  strict,
}: {
  json?: string | undefined;
  quick: boolean;
  strict: boolean;
}): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), "shoal-bench-round-"));
  const cases = quick ? CASES.filter(({ parameters }) => parameters < 100_000_000) : CASES;
  const fleet = await Fleet.start({ dir });
  const agents: VirtualAgent[] = [];
  try {
    const world = await openWorld(fleet, dir);
    const token = await fleet.token();
    const results: BenchResult[] = [];
    for (const one of cases) {
      for (let i = agents.length; i < one.agents; i++) agents.push(await joinAgent(token, `bench-${i}`, dir));
      results.push(...(await measure(world, one, agents, quick ? 3 : ROUNDS)));
    }
    await closeWorld(world);
    report("round", results, json, strict);
  } finally {
    for (const { plane } of agents) await plane.close();
    await fleet.stop();
    await rm(dir, { recursive: true, force: true });
  }
}
