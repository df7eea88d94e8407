import test from "ava";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { RoundResult } from "#proto/shoal/v1/round.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { reconcileRound } from "#services/aggregator/controller.js";
import { replayRound } from "#services/aggregator/replay.js";
import { startNats, startRedis } from "../support/servers.js";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  freeze,
  reconcile,
  resultOf,
  seedFleet,
  tallyOf,
  upload,
  type Fleet,
  type WorldOptions,
} from "./world.js";

const PARAMETERS = 1_100_000;
const clock = new SystemClock();

/** Waits for a fact, with a bound that only a failure reaches: the key of a killed worker stays locked for up to 20 s. */
async function eventually<T>(what: string, look: () => Promise<T | undefined>): Promise<T> {
  for (let attempt = 0; attempt < 1200; attempt++) {
    const seen = await look();
    if (seen !== undefined) return seen;
    await clock.sleep(50);
  }
  throw new Error(`${what} did not happen`);
}

function spawnAggregator(env: Record<string, string>): ChildProcess {
  const child = spawn(process.execPath, [resolve("dist/services/aggregator/main.js")], {
    env: { ...process.env, SHOAL_METRICS_LISTEN: "127.0.0.1:0", SHOAL_GRPC_LISTEN: "127.0.0.1:0", ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  child.stdout.resume();
  return child;
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
  const ended = once(child, "exit");
  child.kill(signal);
  await ended;
  return child.exitCode;
}

async function connectFleet(
  link: NatsLink,
  options: WorldOptions = { parameters: PARAMETERS, codec: "int8" },
): Promise<Fleet & { log: NatsUpdateLog }> {
  await ensureStreams(link);
  const store = await NatsResourceStore.open(link);
  const uplink = (device: string): NatsUpdateUplink => new NatsUpdateUplink(link.nc, device);
  const adapters = { store, blobs: new NatsBlobStore(link), log: new NatsUpdateLog(link), uplink };
  return seedFleet(adapters, options);
}

async function undisturbed(): Promise<RoundResult | undefined> {
  const world = await createWorld({ parameters: PARAMETERS, codec: "int8" });
  for (const [i, device] of DEVICES.entries()) await commit(world, await upload(world, device, draw(PARAMETERS, i)));
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  return resultOf(world);
}

test("two processes on NATS and Redis, killed in the middle, fold what memory adapters fold undisturbed", async (t) => {
  const expected = await undisturbed();
  const [nats, redis] = await Promise.all([startNats(), startRedis()]);
  t.teardown(() => Promise.all([nats.stop(), redis.stop()]));
  const creds = join(nats.dir, "test.creds");
  await writeFile(creds, nats.root.serviceCreds);
  const env = { SHOAL_NATS_URL: nats.url, SHOAL_NATS_CREDS: creds, SHOAL_REDIS_URL: redis.url, SHOAL_RESYNC_MS: "500" };
  const children = [spawnAggregator(env), spawnAggregator(env)] as const;
  t.teardown(() => Promise.all(children.map((child) => end(child, "SIGKILL"))));
  const link = await nats.connect();
  t.teardown(() => link.close());
  const fleet = await connectFleet(link);

  const judged = (count: number): Promise<true> =>
    eventually(`${count} verdicts`, async () => {
      const tally = await fleet.store.get("UpdateTally", "tiny-1");
      return tally?.verdicts.length === count ? true : undefined;
    });
  for (const [i, device] of DEVICES.entries()) {
    const manifest = await upload(fleet, device, draw(PARAMETERS, i));
    await commit(fleet, manifest);
    if (i === 0) {
      // Only the log of one replica's wake-ups is lost; the other one judges.
      await judged(1);
      await end(children[0], "SIGKILL");
      await commit(fleet, manifest);
    }
    if (i === 1) await redis.restart();
  }
  await judged(4);
  t.deepEqual(
    (await tallyOf(fleet)).verdicts.map((each) => each.reason),
    ["", "Duplicate", "", ""],
  );

  await freeze(fleet);
  // In the middle of the fold, or just before or after it.
  await end(children[1], "SIGKILL");
  const survivor = spawnAggregator(env);
  t.teardown(() => end(survivor, "SIGKILL"));
  const result = await eventually("the result", () => resultOf(fleet));
  t.is(result.weights?.digest, expected?.weights?.digest);
  t.is(result.outerState?.digest, expected?.outerState?.digest);
  const replayed = await replayRound(fleet, "tiny-1");
  t.is(replayed.weightsDigest, expected?.weights?.digest ?? "");
  t.is(await end(survivor, "SIGTERM"), 0, "drains and exits cleanly");
});

test("a robust rule reads the log of a real NATS column by column and comes to the same bits as on memory", async (t) => {
  const options = { parameters: 140_000, codec: "fp32", strategy: "trimmedMean", normBound: 3 };
  const world = await createWorld(options);
  const nats = await startNats();
  t.teardown(() => nats.stop());
  const link = await nats.connect();
  t.teardown(() => link.close());
  const fleet = await connectFleet(link, options);
  for (const each of [world, fleet]) {
    for (const [i, device] of DEVICES.entries()) await commit(each, await upload(each, device, draw(140_000, i)));
    const ports = { ...world.ports, store: each.store, blobs: each.blobs, log: each === world ? world.log : fleet.log };
    await reconcileRound(ports, "tiny-1");
    await freeze(each);
    await reconcileRound(ports, "tiny-1");
  }
  const [onMemory, onNats] = [await resultOf(world), await resultOf(fleet)];
  t.is(onNats?.folded.length, 3);
  t.is(onNats?.weights?.digest, onMemory?.weights?.digest);
  t.is((await replayRound(fleet, "tiny-1")).weightsDigest, onNats?.weights?.digest ?? "");
});

for (const [name, value] of [
  ["SHOAL_LOG_RETAIN_ROUNDS", "-1"],
  ["SHOAL_BLOB_GRACE_MS", "999"],
] as const)
  test(`${name}=${value} ends in a clear message and the exit code for bad configuration`, async (t) => {
    const [nats, redis] = await Promise.all([startNats(), startRedis()]);
    t.teardown(() => Promise.all([nats.stop(), redis.stop()]));
    const creds = join(nats.dir, "test.creds");
    await writeFile(creds, nats.root.serviceCreds);
    const env = { SHOAL_NATS_URL: nats.url, SHOAL_NATS_CREDS: creds, SHOAL_REDIS_URL: redis.url };
    const child = spawnAggregator({ ...env, [name]: value });
    t.teardown(() => end(child, "SIGKILL"));
    let said = "";
    child.stdout?.on("data", (data: Buffer) => (said += data.toString()));
    const [code] = (await once(child, "exit")) as [number | null];
    t.is(code, 78);
    t.true(said.includes(name), said);
  });
