import test from "ava";
import { MemoryBus } from "#common/adapters/memory/bus.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { encodeUpdate, updateBytes } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { DeviceFacts } from "#proto/shoal/v1/device.js";
import { HeartbeatReply, type HeartbeatRequest, SiteRound } from "#proto/shoal/v1/device_wire.js";
import { CodecSpec } from "#proto/shoal/v1/job.js";
import { RoundTask, UpdateManifest } from "#proto/shoal/v1/round.js";
import { BlobCache } from "#agent/cache.js";
import { Outbox } from "#agent/outbox/outbox.js";
import { siteNeed } from "#agent/outbox/room.js";
import { GatewayLoop } from "#agent/runtime/gateway-loop.js";
import { SiteLedger } from "#agent/site/ledger.js";
import { SiteRelay } from "#agent/site/relay.js";
import type { GatewayPlane } from "#agent/transport/control-plane.js";
import { CrashDisk } from "./support/crash-disk.js";

const ROUND = "tiny-1";
const VALUES = 100_000;
const MEMBERS = ["ann", "bob"];
const CODEC = codecByName("int8") as Codec;
const TASK = RoundTask.fromPartial({
  ...{ job: "tiny", round: ROUND, parameters: VALUES, seqLen: 64, referenceSteps: 10, siteWeighting: "tokens" },
  weights: { digest: "sha256:base", sizeBytes: 4 * VALUES },
  codec: { name: "int8", errorFeedback: true },
});

/** The site's log with the update of every member. */
async function siteLog(): Promise<MemoryUpdateLog> {
  const log = new MemoryUpdateLog();
  const chunks = encodeUpdate(new Float32Array(VALUES).fill(0.5), CODEC);
  for (const device of MEMBERS) {
    const uplink = log.uplink(device);
    const chunkSeqs: number[] = [];
    for (const [i, chunk] of chunks.entries()) {
      chunkSeqs.push((await uplink.appendChunk(ROUND, `${device}-${i}`, chunk)).seq);
    }
    const sizeBytes = chunks.reduce((sum, { length }) => sum + length, 0);
    const sent = { codec: "int8", values: VALUES, sizeBytes, digest: sha256Digest(...chunks), chunkSeqs };
    const manifest = {
      ...sent,
      device,
      round: ROUND,
      tokens: 9,
      localSteps: 10,
      trainLoss: 2,
      baseDigest: "sha256:base",
    };
    await uplink.appendCommit(ROUND, `${device}-commit`, UpdateManifest.fromPartial(manifest));
  }
  return log;
}

/** A registry that waits for all members, and a log for the fleet's updates. */
class Fleet implements GatewayPlane {
  readonly log = new MemoryUpdateLog();
  readonly uplink = this.log.uplink("pier");
  readonly closed = new Promise<never>(() => undefined);
  last: HeartbeatRequest | undefined;

  heartbeat(request: HeartbeatRequest): Promise<HeartbeatReply> {
    this.last = request;
    const assignments = MEMBERS.map((device) => ({ device, site: "pier", localSteps: 10, batchSize: 4 }));
    const round = SiteRound.fromPartial({ task: TASK, assignments, deadlineAtMs: 1e9 });
    return Promise.resolve(HeartbeatReply.fromPartial({ site: "pier", siteRounds: [round], nextHeartbeatMs: 1_000 }));
  }

  blobRange(): Promise<never> {
    return Promise.reject(new Error("not asked for here"));
  }

  via(): Promise<never> {
    return this.blobRange();
  }

  onNudge(): void {
    // Nobody nudges.
  }

  renew(): void {
    // Nothing to renew.
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

async function startGateway(disk: CrashDisk) {
  const [clock, log, plane, updates] = [new ManualClock(0), new MemoryLog(), new Fleet(), await siteLog()];
  const outbox = await Outbox.open({ disk, folder: "outbox", log, limits: { leastFreeBytes: 1_000 } });
  const ledger = await SiteLedger.open(disk, "updates");
  const cache = await BlobCache.open({ disk, folder: "cache", maxBytes: 1, clock, log });
  const relay = new SiteRelay({ bus: new MemoryBus(log, clock), cache, clock, log, via: () => plane.via() });
  let nonces = 0;
  const loop = new GatewayLoop({
    ...{ device: "pier", clock, log, plane, outbox, ledger, relay, updates },
    facts: DeviceFacts.fromPartial({}),
    nonce: () => `nonce-${nonces++}`,
    credential: { isDue: () => false, store: () => Promise.resolve() },
  });
  const stop = new AbortController();
  const ended = loop.run(stop.signal);
  /** Lets time go by until it is so, a minute and a half at most. */
  const pass = async (met: () => boolean | Promise<boolean>): Promise<boolean> => {
    for (let i = 0; i < 900; i++) {
      if (await met()) return true;
      await new Promise((resolve) => setImmediate(resolve));
      await clock.advance(100);
    }
    return false;
  };
  return { plane, outbox, ledger, updates, pass, stop: () => (stop.abort(), ended) };
}

test("a gateway without room for its site's update says so, keeps what its members sent, and folds when there is room", async (t) => {
  const disk = new CrashDisk();
  const need = siteNeed(TASK, MEMBERS.length);
  disk.capacityBytes = disk.usedBytes + need;
  const { plane, outbox, ledger, updates, pass, stop } = await startGateway(disk);
  const reasons = (): string[] => plane.last?.assignments.flatMap((one) => one.reasons) ?? [];
  t.true(await pass(() => reasons().length > 0), "it tells");
  t.like(plane.last?.assignments[0], { round: ROUND, phase: "Failed" });
  t.regex(reasons()[0] ?? "", new RegExp(`^DiskLow: .* need ${need} bytes.*free space there`));
  t.deepEqual([await outbox.spooled(), ledger.keys], [[], []]);
  t.is((await updates.commits(ROUND)).length, MEMBERS.length);
  t.is((await plane.log.commits(ROUND)).length, 0);
  disk.capacityBytes += 2_000;
  t.true(await pass(async () => (await plane.log.commits(ROUND)).length === 1), "it folds");
  const [commit] = await plane.log.commits(ROUND);
  t.deepEqual(
    commit?.manifest?.members.map(({ device }) => device),
    MEMBERS,
  );
  t.true(await pass(() => reasons().length === 0), "and has nothing more to tell");
  await stop();
});

test("a site's update needs its encoding, what the codec loses of all of the model, and who is in it", (t) => {
  const described = 64 * 1024;
  t.is(siteNeed(TASK, 0), updateBytes(VALUES, CODEC) + 4 * VALUES + described);
  t.is(siteNeed(TASK, 3) - siteNeed(TASK, 0), 3 * 2048);
  const lossless = { ...TASK, codec: CodecSpec.fromPartial({ name: "fp32", errorFeedback: true }) };
  t.is(siteNeed(lossless, 0), 4 * VALUES + described);
  const ranges = [{ start: 0, length: VALUES / 2 }];
  const fragmented = { ...TASK, fragments: [{ ranges }] };
  t.is(siteNeed(fragmented, 0), updateBytes(VALUES / 2, CODEC) + 4 * VALUES + described);
});
