import test from "ava";
import { inlineDigests } from "#common/runtime/inline-digests.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { subjects } from "#common/domain/subjects.js";
import type { Kind } from "#common/ports/resource-store.js";
import type { LogSelection } from "#common/ports/update-log.js";
import { newMeta } from "#common/domain/resources.js";
import { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { codeOf } from "#common/adapters/coded-error.js";
import { reconcileRound } from "#services/aggregator/controller.js";
import { collectLog, type CollectorPorts } from "#services/aggregator/log-collector.js";
import { aggregatorMeters, logMeters } from "#services/aggregator/meters.js";
import { RunningSums } from "#services/aggregator/running-sums.js";
import { startNats } from "#test/support/servers.js";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  freeze,
  openRound,
  reconcile,
  resultOf,
  seedFleet,
  setPhase,
  tallyOf,
  upload,
  type World,
} from "./world.js";

function collectorOf(world: World, retainRounds = 3): CollectorPorts {
  const { store, log, metrics } = world;
  return { store, log, journal: new MemoryLog(), meters: logMeters(metrics), retainRounds };
}

/** A first round that two devices committed to, folded and completed; the third left chunks without a commit. */
async function completedWorld(): Promise<World> {
  const world = await createWorld();
  for (const device of ["ann", "bob"]) await commit(world, await upload(world, device, draw(600, 1)));
  await upload(world, "cyd", draw(600, 2));
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  await setPhase(world, "Completed");
  return world;
}

test("nothing of an open round goes; once it is closed, chunks go that it did not fold", async (t) => {
  const world = await createWorld();
  await upload(world, "cyd", draw(600, 2));
  await collectLog(collectorOf(world));
  t.is((await world.log.usage()).messages, 1);
  const done = await completedWorld();
  await collectLog(collectorOf(done));
  const { parts } = await done.log.parts();
  t.deepEqual(parts.map(({ device }) => device).sort(), ["ann", "bob"]);
  t.is(done.metrics.value("shoal_update_log_purged_messages_total", { reason: "NotFolded" }), 1);
});

/** The world's store, whose lists come from a copy that lags. */
function listing({ store }: World, items: readonly Round[]): World["store"] {
  return new Proxy(store, {
    get: (target, key) => {
      if (key === "list")
        return (kind: Kind) => Promise.resolve({ items: kind === "Round" ? items : [], version: "0" });
      const member: unknown = Reflect.get(target, key);
      return typeof member === "function" ? (member.bind(target) as unknown) : member;
    },
  });
}

test("a round that is missing from a list, as in a copy that lags, loses nothing", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await collectLog({ ...collectorOf(world), store: listing(world, []) });
  t.is((await world.log.usage()).messages, 2);
});

test("nor does one that a list shows as it was before its job was applied again", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await reconcile(world);
  const older = Round.fromPartial({ metadata: { name: "tiny-1", uid: "older" }, status: { phase: "Failed" } });
  await collectLog({ ...collectorOf(world), store: listing(world, [older]) });
  t.is((await world.log.usage()).messages, 2);
});

test("what an earlier round's tally accepts is not kept for the round of its name", async (t) => {
  const world = await createWorld();
  await upload(world, "ann", draw(600, 1));
  const verdicts = [{ commitSeq: 9, accepted: true, manifest: { device: "ann" } }];
  const tally = UpdateTally.fromPartial({ metadata: newMeta("tiny-1"), verdicts, roundUid: "older" });
  await world.store.create("UpdateTally", tally);
  await setPhase(world, "Failed");
  await collectLog(collectorOf(world));
  t.is((await world.log.usage()).messages, 0);
});

test("an honest commit behind pages of a device that is cut off is judged, by the next look", async (t) => {
  const world = await createWorld();
  for (let i = 0; i < 40; i++) {
    const junk = new Uint8Array(500_000).fill(255);
    await world.log.append(subjects.updateCommit("ann", "tiny-1"), `pages/${i}`, junk);
  }
  await commit(world, await upload(world, "bob", draw(600, 2)));
  await reconcile(world);
  const { verdicts, lastSeq } = await tallyOf(world);
  t.is(verdicts.at(-1)?.manifest?.device, "bob");
  t.is(lastSeq, (await world.log.usage()).lastSeq);
});

test("a replica that retires a round late leaves what another job of the name brought since", async (t) => {
  const world = await createWorld({ retainRounds: 1 });
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await openRound(world, 2);
  await commit(world, await upload(world, "ann", draw(600, 1), 10, 2), "ann", 2);
  await reconcile(world, 2);
  await freeze(world, undefined, 2);
  const later = await commit(world, await upload(world, "bob", draw(600, 2)));
  await reconcile(world, 2);
  t.truthy(await resultOf(world, 2));
  t.deepEqual(
    (await world.log.commits("tiny-1")).map(({ seq }) => seq),
    [later],
  );
});

test("junk for rounds that do not exist and under names that are none goes, the rest stays", async (t) => {
  const world = await completedWorld();
  for (const round of ["tiny-77", "nobody-1", "*", ">"])
    await world.log.append(subjects.updateChunk("ann", round), `junk/${round}`, new Uint8Array(1000));
  const ports = collectorOf(world);
  await collectLog(ports);
  await collectLog(ports);
  const { parts, strays } = await world.log.parts();
  t.is(strays, 0);
  t.deepEqual([...new Set(parts.map(({ round }) => round))], ["tiny-1"]);
  t.is(world.metrics.value("shoal_update_log_purged_messages_total", { reason: "NoRound" }), 4);
});

test("thousands of names that a device invents go at once, and its part in a round stays", async (t) => {
  const world = await completedWorld();
  for (let i = 0; i < 2000; i++)
    await world.log.append(subjects.updateChunk("ann", `junk-${i}`), `junk/${i}`, Uint8Array.of(1));
  await world.log.append(subjects.updateChunk("bob", "junk-1"), "junk/bob", Uint8Array.of(1));
  const purged: LogSelection[] = [];
  const log = Object.assign(Object.create(world.log) as World["log"], {
    purge: (selection: LogSelection) => {
      purged.push(selection);
      return world.log.purge(selection);
    },
  });
  await collectLog({ ...collectorOf(world), log });
  t.deepEqual(
    purged.map(({ round, device = "" }) => `${round} ${device}`),
    ["tiny-1 cyd", "junk-1 "],
  );
  const { parts } = await world.log.parts();
  t.deepEqual(parts.map(({ device, round }) => `${device} ${round}`).sort(), ["ann tiny-1", "bob tiny-1"]);
  t.is(world.metrics.value("shoal_update_log_purged_messages_total", { reason: "NoRound" }), 2001);
});

test("a commit that comes late to a purged round goes as well", async (t) => {
  const world = await completedWorld();
  const job = await world.store.get("TrainingJob", "tiny");
  if (job?.status === undefined) throw new Error("no job");
  await world.store.update("TrainingJob", { ...job, status: { ...job.status, currentRound: 5 } });
  const ports = collectorOf(world);
  await collectLog(ports);
  t.is((await world.log.usage()).messages, 0);
  await commit(world, await upload(world, "cyd", draw(600, 2)));
  await collectLog(ports);
  t.is((await world.log.usage()).messages, 0);
});

test("a device that floods an open round is cut back once nothing more of it can count; updates that count stay whole", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await reconcile(world);
  for (const device of ["ann", "bob", "eve"])
    for (let i = 0; i < 200; i++)
      await world.log.append(subjects.updateChunk(device, "tiny-1"), `flood/${device}/${i}`, new Uint8Array(100));
  await collectLog(collectorOf(world));
  t.is(
    (await world.log.usage()).messages,
    2 + 200,
    "any chunk of bob's may be of an update that is accepted meanwhile",
  );
  await commit(world, await upload(world, "bob", draw(600, 3)));
  await reconcile(world);
  await collectLog(collectorOf(world));
  t.is((await world.log.usage()).messages, 4);
  await freeze(world);
  await reconcile(world);
  t.deepEqual(
    (await resultOf(world))?.folded.map(({ manifest }) => manifest?.device),
    ["ann", "bob"],
  );
});

test("short of space, closed rounds leave before their time and a person is told when that does not help", async (t) => {
  const world = await completedWorld();
  const pair = ["ann", "bob"];
  const small = new MemoryUpdateLog(2 * 2400 * 1.1);
  const smallWorld = { ...world, uplink: (device: string) => small.uplink(device) };
  for (const device of pair) await upload(smallWorld, device, draw(600, 1));
  const journal = new MemoryLog();
  const ports = { ...collectorOf(world, 0), log: small, journal };
  await collectLog(ports);
  t.is((await small.usage()).messages, 0);
  await openRound(world, 2);
  for (const device of pair) await upload(smallWorld, device, draw(600, 1), 10, 2);
  await collectLog(ports);
  t.is((await small.usage()).messages, 2, "an open round stays");
  t.true(journal.lines.some(({ level, message }) => level === "warn" && message.includes("SHOAL_UPDATES_MAX_BYTES")));
  t.is(world.metrics.value("shoal_update_log_bytes"), (await small.usage()).bytes);
});

test("a log with room for little more than a round refuses, loses nothing, and every round is folded", async (t) => {
  const server = await startNats();
  const link = await server.connect();
  t.teardown(async () => {
    await link.close();
    await server.stop();
  });
  // Two and a half updates of 512 KiB: no round of three devices fits beside another.
  await ensureStreams(link, { updatesMaxBytes: 1_800_000 });
  const [blobs, log] = [new NatsBlobStore(link), new NatsUpdateLog(link)];
  const store = await NatsResourceStore.open(link);
  const uplink = (device: string) => new NatsUpdateUplink(link.nc, device);
  const fleet = await seedFleet({ store, blobs, uplink }, { parameters: 120_000 });
  const metrics = new MemoryMetrics();
  const journal = new MemoryLog();
  const enqueue = (): Promise<void> => Promise.resolve();
  const meters = aggregatorMeters(metrics);
  const ports = {
    store,
    blobs,
    log,
    clock: link.clock,
    journal,
    meters,
    enqueue,
    digests: inlineDigests,
    retainRounds: 3,
    sums: new RunningSums(0),
  };
  const collector = { store, log, journal, meters: logMeters(metrics), retainRounds: 3 };
  let refused = 0;
  for (let number = 1; number <= 4; number++) {
    if (number > 1) await openRound(fleet, number);
    for (const device of DEVICES) {
      for (let tries = 0; ; tries++) {
        try {
          const manifest = await upload(fleet, device, draw(120_000, number), 10, number);
          await uplink(device).appendCommit(`tiny-${number}`, `${device}/${number}`, manifest);
          break;
        } catch (error) {
          if (codeOf(error) !== "LOG_FULL" || tries === 3) throw error;
          refused++;
          await collectLog(collector);
        }
      }
    }
    await reconcileRound(ports, `tiny-${number}`);
    const tally = await tallyOf(fleet, number);
    t.is(tally.verdicts.filter(({ accepted }) => accepted).length, 3, `round ${number}`);
    const foldSet = tally.verdicts.map(({ commitSeq, manifest }) => ({
      commitSeq,
      device: manifest?.device ?? "",
      staleness: 0,
    }));
    const round = await store.get("Round", `tiny-${number}`);
    if (round?.status === undefined) throw new Error("no round");
    await store.update("Round", { ...round, status: { ...round.status, phase: "Aggregating", foldSet } });
    await reconcileRound(ports, `tiny-${number}`);
    t.is((await resultOf(fleet, number))?.folded.length, 3);
    await setPhase(fleet, "Completed", number);
  }
  t.true(refused >= 3, `${refused} refusals`);
  t.true(metrics.value("shoal_update_log_purged_messages_total", { reason: "Pressure" }) >= 9);
});
