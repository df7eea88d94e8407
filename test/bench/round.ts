import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Round, UpdateManifest } from "#proto/shoal/v1/round.js";
import { nodeDisk } from "#agent/disk.js";
import { Outbox } from "#agent/outbox/outbox.js";
import type { ControlPlane } from "#agent/transport/control-plane.js";
import { joinFleet } from "#agent/transport/join.js";
import { parseJoinToken } from "#agent/transport/join-token.js";
import { connectControlPlane } from "#agent/transport/nats-control-plane.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { FOLD_SHARD_VALUES } from "#common/domain/round.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { createRng } from "#common/domain/rng.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { encodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { DeviceFacts } from "#proto/shoal/v1/device.js";
import { Fleet } from "../fleet/fleet.js";
import { report, type BenchResult } from "./report.js";

/** A round as it is measured: so many agents, each with an update of so many values. */
interface Case {
  name: string;
  agents: number;
  parameters: number;
  codec: string;
  /** Bar, seconds. */
  most: number;
  /** Flower 1.28's legacy and SuperLink figures of the issue, seconds; quoted, not measured here. */
  flower?: readonly [number, number];
}

const CASES: readonly Case[] = [
  { name: "10 x 1 kB", agents: 10, parameters: 250, codec: "fp32", most: 0.15, flower: [0.028, 9.4] },
  { name: "200 x 1 kB", agents: 200, parameters: 250, codec: "fp32", most: 1 },
  { name: "10 x 12 M int8", agents: 10, parameters: 12_000_000, codec: "int8", most: 1 },
  { name: "10 x 12 M fp32", agents: 10, parameters: 12_000_000, codec: "fp32", most: 2, flower: [7.3, 21] },
  { name: "2 x 124 M fp32", agents: 2, parameters: 124_000_000, codec: "fp32", most: 8, flower: [24, 24] },
];
const ROUNDS = 5;
const SEQ_LEN = 16;

/** A device without a model: real credentials, outbox and uplink. */
interface Agent {
  device: string;
  plane: ControlPlane;
  outbox: Outbox;
}

interface World {
  link: NatsLink;
  store: NatsResourceStore;
  blobs: NatsBlobStore;
}

const clock = new SystemClock();
const log = new MemoryLog();
const never = new AbortController().signal;

async function joinAgent(token: string, device: string, dir: string): Promise<Agent> {
  const parsed = parseJoinToken(token);
  if (!parsed.ok) throw new Error(parsed.problem);
  const { bundle } = parsed;
  const keep = (): Promise<void> => Promise.resolve();
  const facts = DeviceFacts.fromPartial({});
  const joined = await joinFleet({
    bundle,
    name: device,
    labels: {},
    facts,
    seed: undefined,
    keep,
    clock,
    log,
    signal: never,
  });
  const identity = { ...joined, tokenId: bundle.tokenId, rejected: false };
  const plane = await connectControlPlane(identity, { clock, log, signal: never });
  const outbox = await Outbox.open({ disk: nodeDisk, folder: join(dir, "agents", device), log });
  return { device: joined.device, plane, outbox };
}

/** Values like those of an update, a few thousand drawn and repeated. */
function deltaOf(parameters: number): Float32Array {
  const rng = createRng(7);
  const drawn = Float32Array.from({ length: 4099 }, () => 0.01 * rng.normal());
  return Float32Array.from({ length: parameters }, (_, i) => drawn[i % drawn.length] as number);
}

/** Puts a job whose only round is under way into the store: what the scheduler has written when training begins. */
async function openRound({ store, blobs }: World, job: string, one: Case, devices: readonly string[]): Promise<string> {
  const weights = await blobs.put(new Uint8Array(4 * one.parameters));
  const strategy = { name: "fedavg", ...strategyFacts("fedavg")?.parameters, weighting: "tokens" };
  const status = { phase: "Running", currentRound: 1, weights, parameters: one.parameters };
  const meta = { apiVersion: API_VERSION, metadata: newMeta(job) };
  const spec = { rounds: 1, strategy, cohort: { min: one.agents, target: one.agents } };
  await store.create("TrainingJob", TrainingJob.fromPartial({ ...meta, kind: "TrainingJob", spec, status }));
  const round = `${job}-1`;
  const { parameters, codec } = one;
  const shared = { job, round, number: 1, seqLen: SEQ_LEN, parameters, weights, codec: { name: codec } };
  await store.create(
    "Round",
    Round.fromPartial({
      apiVersion: API_VERSION,
      kind: "Round",
      metadata: newMeta(round, { job }),
      spec: { job, number: 1, task: { ...shared, referenceSteps: 10 }, foldShardValues: FOLD_SHARD_VALUES },
      status: {
        phase: "Training",
        assignments: devices.map((device) => ({ device, localSteps: 10, batchSize: 4 })),
        plannedAtMs: clock.nowMs(),
        deadlineAtMs: clock.nowMs() + 600_000,
        target: one.agents,
        quorum: one.agents,
      },
    }),
  );
  return weights.digest;
}

/** Spools every agent's update, then measures from the first upload to the durable result. */
async function playRound(
  world: World,
  one: Case,
  job: string,
  agents: readonly Agent[],
  chunks: readonly Uint8Array[],
  digest: string,
): Promise<number> {
  const round = `${job}-1`;
  const base = await openRound(
    world,
    job,
    one,
    agents.map(({ device }) => device),
  );
  for (const { device, outbox } of agents) {
    const manifest = UpdateManifest.fromPartial({
      device,
      round,
      codec: one.codec,
      values: one.parameters,
      sizeBytes: chunks.reduce((sum, chunk) => sum + chunk.length, 0),
      digest,
      tokens: 640,
      localSteps: 10,
      baseDigest: base,
    });
    await outbox.put({ job, key: round, manifest, chunks }, undefined, `${device}-${round}`);
  }
  const stop = new AbortController();
  const finished = (async (): Promise<number> => {
    for await (const event of world.store.watch("RoundResult", { name: round, signal: stop.signal })) {
      if (event.type === "put") return clock.monotonicMs();
    }
    throw new Error(`round ${round} has no result`);
  })();
  const timeout = clock.sleep(120_000, stop.signal).then(() => stop.abort());
  const startedMs = clock.monotonicMs();
  const hooks = {
    signal: never,
    monotonicMs: () => clock.monotonicMs(),
    chunkSent: () => undefined,
    commitSending: () => undefined,
  };
  const uploads = agents.map(({ outbox, plane }) => outbox.upload(round, plane.uplink, () => clock.nowMs(), hooks));
  const endedMs = await finished;
  await Promise.all(uploads);
  stop.abort();
  await timeout;
  await clearRound(world, round);
  return (endedMs - startedMs) / 1000;
}

/** Makes room for the next round. */
async function clearRound({ link, store, blobs }: World, round: string): Promise<void> {
  const result = await store.get("RoundResult", round);
  const { streams } = await link.manager();
  await streams.purge("UPDATES", { filter: `shoal.u.*.${round}.>` });
  if (result?.weights !== undefined) await blobs.delete(result.weights.digest);
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? NaN;

async function measure(world: World, one: Case, agents: readonly Agent[], rounds: number): Promise<BenchResult[]> {
  const codec = codecByName(one.codec) as Codec;
  const chunks = encodeUpdate(deltaOf(one.parameters), codec);
  const digest = sha256Digest(...chunks);
  const seconds: number[] = [];
  const slug = one.name.replace(/[^a-z0-9]+/gi, "-").toLowerCase();
  for (let number = 0; number <= rounds; number++) {
    const taken = await playRound(world, one, `bench-${slug}-${number}`, agents.slice(0, one.agents), chunks, digest);
    // The first one warms up.
    if (number > 0) seconds.push(taken);
    console.log(`${one.name}: ${taken.toFixed(3)} s${number === 0 ? " (warm-up)" : ""}`);
  }
  const result = { case: one.name, metric: "update to durable result", unit: "s" };
  const quoted = ["legacy", "SuperLink"].flatMap((api, i): BenchResult[] => {
    const value = one.flower?.[i];
    return value === undefined ? [] : [{ ...result, metric: `Flower 1.28 ${api}, as quoted`, value }];
  });
  return [{ ...result, value: Number(median(seconds).toFixed(3)), most: one.most }, ...quoted];
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
  const agents: Agent[] = [];
  try {
    const context = fleet.context();
    const creds = await readFile(credsPaths(join(dir, "keys")).service, "utf8");
    const link = await NatsLink.connect({ servers: [context.natsUrl], creds, name: "bench", log, clock });
    const world = { link, store: await NatsResourceStore.open(link), blobs: new NatsBlobStore(link) };
    const token = await fleet.token();
    const most = Math.max(...cases.map(({ agents: count }) => count));
    for (let i = 0; i < most; i++) agents.push(await joinAgent(token, `bench-${i}`, dir));
    const results: BenchResult[] = [];
    for (const one of cases) results.push(...(await measure(world, one, agents, quick ? 3 : ROUNDS)));
    await link.close();
    report("round", results, json, strict);
  } finally {
    for (const { plane } of agents) await plane.close();
    await fleet.stop();
    await rm(dir, { recursive: true, force: true });
  }
}
