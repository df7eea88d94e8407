import { readFile } from "node:fs/promises";
import { join } from "node:path";
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
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { createRng } from "#common/domain/rng.js";
import { FOLD_SHARD_VALUES } from "#common/domain/round.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { encodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { SPARSE_LOCO } from "#common/tensor/codecs/topk.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { DeviceFacts } from "#proto/shoal/v1/device.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Round, UpdateManifest } from "#proto/shoal/v1/round.js";
import { loseBlob } from "#test/support/lost-blob.js";
import type { Fleet } from "../fleet/fleet.js";

/** A round as it is measured: so many agents, each with an update of so many values. */
export interface RoundShape {
  agents: number;
  parameters: number;
  codec: string;
}

/** A device without a model: real credentials, outbox and uplink. */
export interface VirtualAgent {
  device: string;
  plane: ControlPlane;
  outbox: Outbox;
}

/** The control plane's storage, as its services see it. */
export interface World {
  link: NatsLink;
  /** For reading updates, as the aggregator has one. */
  runs: NatsLink;
  store: NatsResourceStore;
  blobs: NatsBlobStore;
}

/** An update that every agent sends. */
export interface SharedUpdate {
  chunks: readonly Uint8Array[];
  digest: string;
}

const SEQ_LEN = 16;
const MOST_PURGES = 60;

const clock = new SystemClock();
const log = new MemoryLog();
const never = new AbortController().signal;

/** Ends what `openWorld` began. */
export async function closeWorld({ link, runs }: World): Promise<void> {
  await runs.close();
  await link.close();
}

/** Opens the storage of a fleet that runs in this folder. */
export async function openWorld(fleet: Fleet, dir: string): Promise<World> {
  const creds = await readFile(credsPaths(join(dir, "keys")).service, "utf8");
  const options = { servers: [fleet.context().natsUrl], creds, name: "bench", log, clock };
  const link = await NatsLink.connect(options);
  const runs = await NatsLink.connect({ ...options, isForRuns: true });
  return { link, runs, store: await NatsResourceStore.open(link), blobs: new NatsBlobStore(link) };
}

/** Joins as a device does. */
export async function joinAgent(token: string, device: string, dir: string): Promise<VirtualAgent> {
  const parsed = parseJoinToken(token);
  if (!parsed.ok) throw new Error(parsed.problem);
  const { bundle } = parsed;
  const keep = (): Promise<void> => Promise.resolve();
  const facts = DeviceFacts.fromPartial({});
  const asked = { bundle, name: device, labels: {}, facts, seed: undefined, keep, clock, log, signal: never };
  const joined = await joinFleet(asked);
  const identity = { ...joined, tokenId: bundle.tokenId, rejected: false };
  const plane = await connectControlPlane(identity, { clock, log, signal: never });
  const outbox = await Outbox.open({ disk: nodeDisk, folder: join(dir, "agents", device), log });
  return { device: joined.device, plane, outbox };
}

/** Values like those of an update, a few thousand drawn and repeated, in chunks. */
export function updateOf({ parameters, codec }: RoundShape): SharedUpdate {
  const rng = createRng(7);
  const drawn = Float32Array.from({ length: 4099 }, () => 0.01 * rng.normal());
  const delta = new Float32Array(parameters);
  for (let i = 0; i < parameters; i++) delta[i] = drawn[i % drawn.length] as number;
  const chunks = encodeUpdate(delta, codecByName(codec) as Codec);
  return { chunks, digest: sha256Digest(...chunks) };
}

/** Puts a job whose only round is under way into the store: what the scheduler has written when training begins. */
async function openRound(
  { store, blobs }: World,
  job: string,
  { agents, parameters, codec }: RoundShape,
  devices: readonly string[],
): Promise<string> {
  const weights = await blobs.put(new Uint8Array(4 * parameters));
  const strategy = { name: "fedavg", ...strategyFacts("fedavg")?.parameters, weighting: "tokens" };
  const status = { phase: "Running", currentRound: 1, weights, parameters };
  const meta = { apiVersion: API_VERSION, metadata: newMeta(job) };
  const spec = { rounds: 1, strategy, cohort: { min: agents, target: agents } };
  await store.create("TrainingJob", TrainingJob.fromPartial({ ...meta, kind: "TrainingJob", spec, status }));
  const round = `${job}-1`;
  const written = { name: codec, topk: codec === "topk" ? SPARSE_LOCO : undefined };
  const shared = { job, round, number: 1, seqLen: SEQ_LEN, parameters, weights, codec: written };
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
        deadlineAtMs: clock.nowMs() + 3_600_000,
        target: agents,
        quorum: agents,
      },
    }),
  );
  return weights.digest;
}

/**
 * Spools every agent's update, then measures from the first upload to the durable result.
 * @param before is done when the round is open and nothing of it is in the log.
 * @returns seconds
 */
export async function playRound(
  world: World,
  shape: RoundShape,
  job: string,
  agents: readonly VirtualAgent[],
  { chunks, digest }: SharedUpdate,
  { mostMs = 120_000, before }: { mostMs?: number; before?: (round: string) => Promise<void> } = {},
): Promise<number> {
  const round = `${job}-1`;
  const base = await openRound(
    world,
    job,
    shape,
    agents.map(({ device }) => device),
  );
  for (const { device, outbox } of agents) {
    const manifest = UpdateManifest.fromPartial({
      device,
      round,
      codec: shape.codec,
      values: shape.parameters,
      sizeBytes: chunks.reduce((sum, chunk) => sum + chunk.length, 0),
      digest,
      tokens: 640,
      localSteps: 10,
      baseDigest: base,
    });
    await outbox.put({ job, key: round, manifest, chunks }, undefined, `${device}-${round}`);
  }
  await before?.(round);
  const stop = new AbortController();
  const finished = (async (): Promise<number> => {
    for await (const event of world.store.watch("RoundResult", { name: round, signal: stop.signal })) {
      if (event.type !== "put") continue;
      if (event.resource.folded.length === agents.length) return clock.monotonicMs();
      throw new Error(`round ${round} folded ${event.resource.folded.length} of ${agents.length} updates`);
    }
    throw new Error(`round ${round} has no result`);
  })();
  const timeout = clock.sleep(mostMs, stop.signal).then(() => stop.abort());
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
  await purgeRound(link, round);
  if (result?.weights !== undefined) await loseBlob(blobs, result.weights.digest);
}

/** Drops what the log has of a round. */
export async function purgeRound(link: NatsLink, round: string): Promise<void> {
  const { streams } = await link.manager();
  // A purge of many chunks goes on when its caller has given up; what comes after it waits for its end.
  for (let tries = 1; ; tries++) {
    try {
      await streams.purge("UPDATES", { filter: `shoal.u.*.${round}.>` });
      return;
    } catch (error) {
      if (tries === MOST_PURGES) throw error;
      await clock.sleep(1000);
    }
  }
}
