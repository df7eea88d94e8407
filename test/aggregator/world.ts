import { inlineDigests } from "#common/runtime/inline-digests.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Round, UpdateManifest, type RoundResult, type UpdateTally } from "#proto/shoal/v1/round.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateUplink } from "#common/ports/update-log.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { createRng } from "#common/domain/rng.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { encodeUpdate, forVectors } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { toBytes } from "#common/tensor/flat.js";
import { reconcileKey, type AggregatorPorts } from "#services/aggregator/controller.js";
import { RunningSums } from "#services/aggregator/running-sums.js";
import { aggregatorMeters } from "#services/aggregator/meters.js";

export const JOB = "tiny";
export const DEVICES = ["ann", "bob", "cyd"];
const BATCH = 4;
const SEQ_LEN = 16;
const STEPS = 10;

/** Normally distributed values from a seed. */
export function draw(length: number, seed: number, size = 0.01): Float32Array {
  const rng = createRng(seed);
  return Float32Array.from({ length }, () => size * rng.normal());
}

/** Base weights by length: drawing them takes longer than most tests. */
const bases = new Map<number, Float32Array>();

function baseOf(parameters: number): Float32Array {
  const base = bases.get(parameters) ?? draw(parameters, 99, 1);
  bases.set(parameters, base);
  return base;
}

export interface WorldOptions {
  parameters?: number;
  codec?: string;
  /** Codec of the way down. */
  down?: string;
  strategy?: string;
  weighting?: string;
  maxUpdateNorm?: number;
  normBound?: number;
  population?: number;
  evaluationOnly?: boolean;
  retainRounds?: number;
  /** Memory for sums of updates that are judged; 0, the default, folds from the log. */
  sumsMaxBytes?: number;
  /** Later rounds that may fold an update of one. */
  maxStaleness?: number;
  /** About so many values in a shard of the fold. */
  foldShardValues?: number;
  /** A log that others use too; commits in it count. */
  log?: MemoryUpdateLog;
  /** Devices that only evaluate in a training round. */
  evaluators?: string[];
  /** Weights of the first round; drawn unless given. */
  base?: Float32Array;
  /** What a later round starts from; the first one's base unless given. */
  start?: Pick<RoundResult, "weights" | "outerState"> & Partial<Pick<RoundResult, "delta">>;
}

/** What a test needs of any adapters. */
export interface Fleet {
  store: ResourceStore;
  blobs: BlobStore;
  uplink: (device: string) => UpdateUplink;
  codec: Codec;
  base: Float32Array;
  baseDigest: string;
}

/** The same on memory adapters, with the aggregator's view of them. */
export interface World extends Fleet {
  ports: AggregatorPorts;
  store: MemoryResourceStore;
  blobs: MemoryBlobStore;
  log: MemoryUpdateLog;
  metrics: MemoryMetrics;
  /** Keys that wait in the aggregator's queue. */
  keys: Set<string>;
}

const isControlled = ({ strategy = "" }: WorldOptions): boolean => strategyFacts(strategy)?.controlled === true;

/** Puts a job and its first round in phase Training into the stores. */
export async function seedFleet<T extends Pick<Fleet, "store" | "blobs" | "uplink">>(
  adapters: T,
  options: WorldOptions,
): Promise<T & Fleet> {
  const { strategy = "diloco" } = options;
  const base = options.base ?? baseOf(options.parameters ?? 600);
  const weights = await adapters.blobs.put(toBytes(base));
  await adapters.store.create(
    "TrainingJob",
    TrainingJob.fromPartial({
      apiVersion: API_VERSION,
      kind: "TrainingJob",
      metadata: newMeta(JOB),
      spec: {
        rounds: 3,
        strategy: {
          name: strategy,
          ...strategyFacts(strategy)?.parameters,
          weighting: options.weighting ?? "tokens",
          maxUpdateNorm: options.maxUpdateNorm ?? 0,
          normBound: options.normBound ?? 0,
          population: options.population ?? 0,
        },
        codec: { name: options.codec ?? "fp32", down: options.down ?? "" },
      },
      status: { phase: "Running", currentRound: 1 },
    }),
  );
  const codec = forVectors(codecByName(options.codec ?? "fp32") as Codec, isControlled(options) ? 2 : 1);
  const fleet = { ...adapters, codec, base, baseDigest: weights.digest };
  await openRound(fleet, 1, options);
  return fleet;
}

/** A job and its first round in phase Training, on memory adapters. */
export async function createWorld(options: WorldOptions = {}): Promise<World> {
  const clock = new ManualClock();
  const store = new MemoryResourceStore(clock);
  const blobs = new MemoryBlobStore();
  const log = options.log ?? new MemoryUpdateLog();
  const metrics = new MemoryMetrics();
  const keys = new Set<string>();
  const ports: AggregatorPorts = {
    store,
    blobs,
    log,
    clock,
    digests: inlineDigests,
    journal: new MemoryLog(),
    meters: aggregatorMeters(metrics),
    enqueue: (key) => {
      keys.add(key);
      return Promise.resolve();
    },
    retainRounds: options.retainRounds ?? 0,
    sums: new RunningSums(options.sumsMaxBytes ?? 0),
  };
  const uplink = (device: string): UpdateUplink => log.uplink(device);
  return seedFleet({ ports, store, blobs, log, metrics, keys, uplink }, options);
}

/** Creates round `number` in phase Training; it starts from the world's base. */
export async function openRound(world: Fleet, number: number, options: WorldOptions = {}): Promise<void> {
  const weights = options.start?.weights ?? { digest: world.baseDigest, sizeBytes: 4 * world.base.length };
  const job = await world.store.get("TrainingJob", JOB);
  await world.store.create(
    "Round",
    Round.fromPartial({
      apiVersion: API_VERSION,
      kind: "Round",
      metadata: newMeta(`${JOB}-${number}`),
      spec: {
        job: JOB,
        number,
        evaluationOnly: options.evaluationOnly ?? false,
        task: {
          job: JOB,
          jobUid: job?.metadata?.uid ?? "",
          round: `${JOB}-${number}`,
          number,
          seqLen: SEQ_LEN,
          parameters: world.base.length,
          weights,
          delta: options.start?.delta,
          codec: { name: world.codec.name, down: options.down ?? "" },
          controlVariates: isControlled(options),
          evaluate: true,
        },
        outerState: options.start?.outerState ?? { digest: "", sizeBytes: 0 },
        foldShardValues: options.foldShardValues ?? 0,
        maxStaleness: options.maxStaleness ?? 0,
      },
      status: {
        phase: "Training",
        assignments: DEVICES.map((device) => ({
          device,
          localSteps: options.evaluationOnly === true || options.evaluators?.includes(device) === true ? 0 : STEPS,
          batchSize: BATCH,
        })),
      },
    }),
  );
}

/** An honest manifest without payload: an evaluation. */
export function evaluation(world: Fleet, device: string, number = 1): UpdateManifest {
  return UpdateManifest.fromPartial({
    device,
    round: `${JOB}-${number}`,
    codec: world.codec.name,
    evalLossSum: 250,
    evalTokens: 100,
    bytesDown: 4000,
    baseDigest: world.baseDigest,
  });
}

/** Appends the chunks of an update and returns the honest manifest that would commit it. */
export async function upload(
  world: Fleet,
  device: string,
  delta: Float32Array,
  localSteps = STEPS,
  number = 1,
): Promise<UpdateManifest> {
  const round = `${JOB}-${number}`;
  const chunks = encodeUpdate(delta, world.codec);
  const seqs: number[] = [];
  for (const [i, chunk] of chunks.entries()) {
    const id = `${device}/${round}/${i}/${sha256Digest(chunk)}`;
    seqs.push((await world.uplink(device).appendChunk(round, id, chunk)).seq);
  }
  return {
    ...evaluation(world, device, number),
    values: delta.length,
    sizeBytes: chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0),
    digest: sha256Digest(...chunks),
    chunkSeqs: seqs,
    tokens: localSteps * BATCH * SEQ_LEN,
    localSteps,
    trainLoss: 2 + localSteps / 100,
  };
}

let commitCount = 0;

/** Appends a commit as the device named in the subject. */
export async function commit(
  world: Fleet,
  manifest: UpdateManifest,
  device = manifest.device,
  number = 1,
): Promise<number> {
  commitCount += 1;
  const round = `${JOB}-${number}`;
  return (await world.uplink(device).appendCommit(round, `commit-${commitCount}`, manifest)).seq;
}

export async function tallyOf(world: Fleet, number = 1): Promise<UpdateTally> {
  return (await world.store.get("UpdateTally", `${JOB}-${number}`)) as UpdateTally;
}

export async function resultOf(world: Fleet, number = 1): Promise<RoundResult | undefined> {
  return world.store.get("RoundResult", `${JOB}-${number}`);
}

/** What the scheduler does when a round has its quorum: freezes the accepted commits, in log order or as given. */
export async function freeze(world: Fleet, foldDevices?: readonly string[], number = 1): Promise<void> {
  const round = (await world.store.get("Round", `${JOB}-${number}`)) as Round;
  const accepted =
    (await world.store.get("UpdateTally", `${JOB}-${number}`))?.verdicts.filter((each) => each.accepted) ?? [];
  const entries = accepted.map((each) => ({ device: each.manifest?.device ?? "", commitSeq: each.commitSeq }));
  const foldSet = foldDevices?.flatMap((device) => entries.filter((entry) => entry.device === device)) ?? entries;
  await world.store.update(
    "Round",
    Round.fromPartial({ ...round, status: { ...round.status, phase: "Aggregating", foldSet } }),
  );
}

/** Sets the phase of a round as the scheduler would. */
export async function setPhase(world: Fleet, phase: string, number = 1): Promise<void> {
  const round = (await world.store.get("Round", `${JOB}-${number}`)) as Round;
  await world.store.update("Round", Round.fromPartial({ ...round, status: { ...round.status, phase } }));
}

/** Looks at the keys in the queue, and at those that come of it, until none waits. */
export async function drain(world: World, ports: AggregatorPorts = world.ports): Promise<void> {
  for (let next = world.keys.values().next(); next.done !== true; next = world.keys.values().next()) {
    world.keys.delete(next.value);
    await reconcileKey(ports, next.value);
  }
}

export async function reconcile(world: World, number = 1): Promise<void> {
  await reconcileKey(world.ports, `${JOB}-${number}`);
  await drain(world);
}
