import test, { type ExecutionContext } from "ava";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { readEarlier } from "#common/runtime/earlier-rounds.js";
import { Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import { AggregatorApi } from "#services/aggregator/aggregator-api.js";
import { reconcileKey } from "#services/aggregator/controller.js";
import { recordShard } from "#services/aggregator/fold-records.js";
import { RunningSums } from "#services/aggregator/running-sums.js";
import { crashAt, pauseAt, wrapped } from "./disturbance.js";
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
  type World,
  type WorldOptions,
} from "./world.js";

const ROUND = "tiny-1";
const SUMS_BYTES = 1_000_000;
/** The job that is applied again: other weights, no limit. */
const NEWER = { base: draw(600, 7, 1), sumsMaxBytes: SUMS_BYTES };

async function commitAll(world: World, seed: number): Promise<void> {
  for (const [i, device] of DEVICES.entries()) {
    await commit(world, await upload(world, device, draw(600, seed + i), 10 - i));
  }
}

/** What the scheduler does when a job is deleted and somebody applies it again. */
async function applyAgain(world: World, options: WorldOptions = NEWER): Promise<World> {
  const { store, log } = world;
  await log.purgeRound(ROUND);
  for (const kind of ["UpdateTally", "RoundResult", "Round"] as const) await store.delete(kind, ROUND);
  await store.delete("TrainingJob", "tiny");
  const ports = { ...world.ports, sums: new RunningSums(SUMS_BYTES) };
  return { ...(await seedFleet(world, options)), ports };
}

/** All that the newer round comes to, whatever of the older one meets it. */
async function outcomeOf(world: World): Promise<unknown> {
  const { uid } = (await world.store.get("Round", ROUND))?.metadata ?? {};
  const [tally, result] = [await tallyOf(world), await resultOf(world)];
  return {
    verdicts: tally.verdicts.map(({ manifest, reason }) => [manifest?.device, reason]),
    failure: tally.failure,
    isOwn: [tally.roundUid === uid, result?.roundUid === uid],
    folded: result?.folded.map(({ manifest }) => manifest?.device),
    weights: result?.weights?.digest,
    outer: result?.outerState?.digest,
  };
}

async function undisturbed(): Promise<unknown> {
  const world = await createWorld(NEWER);
  await commitAll(world, 20);
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  return outcomeOf(world);
}

/** The older round, which a replica is about to judge, or to fold. */
async function olderRound(stage: "judge" | "fold"): Promise<World> {
  // What this job refuses the newer one takes.
  const world = await createWorld({ sumsMaxBytes: SUMS_BYTES, maxUpdateNorm: stage === "judge" ? 1e-6 : 0 });
  await commitAll(world, 10);
  if (stage === "fold") {
    await reconcile(world);
    await freeze(world);
  }
  return world;
}

/** Looks at the round as the aggregator does, and as the scheduler: `meet` is called before each step. */
async function playNewer(world: World, meet: (step: number) => Promise<void>): Promise<void> {
  await meet(0);
  await commitAll(world, 20);
  await meet(1);
  await reconcile(world);
  await meet(2);
  await reconcile(world);
  await freeze(world);
  await meet(3);
  await reconcile(world);
  await meet(4);
  await reconcile(world);
}

const STEPS = 5;

for (const stage of ["judge", "fold"] as const) {
  for (const after of [false, true]) {
    const when = after ? "after" : "before";
    test(`a replica that stood still ${when} any call to ${stage} a round does nothing to one of the same name`, async (t) => {
      const expected = await undisturbed();
      let pauses = 0;
      for (let at = 1, isPaused = true; isPaused; at++) {
        for (let step = 0; step < STEPS; step++) {
          const older = await olderRound(stage);
          const pause = pauseAt(at, after);
          // What it meets when it goes on may be an error to it.
          const held = reconcileKey(wrapped(older.ports, pause.around), ROUND).catch(() => undefined);
          isPaused = (await Promise.race([pause.reached, held])) === "paused";
          if (!isPaused) break;
          pauses += 1;
          const newer = await applyAgain(older);
          await playNewer(newer, async (now) => {
            if (now !== step) return;
            pause.letGo();
            await held;
          });
          t.deepEqual(await outcomeOf(newer), expected, `call ${at}, step ${step}`);
        }
      }
      t.true(pauses >= 8 * STEPS, `${pauses} pauses`);
    });
  }
}

/** What a replica left that went on with an earlier round: an update of ann that counts, and a result. */
async function leaveOlder({ store, blobs }: World, roundUid = "older"): Promise<void> {
  const verdicts = [{ commitSeq: 7, accepted: true, manifest: { device: "ann" } }];
  const failure = { code: "LOG_CORRUPT", attempts: 5, final: true, firstAtMs: 1, lastAtMs: 1 };
  const metadata = newMeta(ROUND, { job: "tiny" });
  await store.create("UpdateTally", UpdateTally.fromPartial({ metadata, verdicts, lastSeq: 1e6, failure, roundUid }));
  const weights = await blobs.put(new Uint8Array(2400));
  await store.create("RoundResult", RoundResult.fromPartial({ metadata, job: "tiny", number: 1, weights, roundUid }));
}

for (const after of [false, true]) {
  test(`killed ${after ? "after" : "before"} any call, a replica replaces what an earlier round left by the round's own`, async (t) => {
    const expected = await undisturbed();
    let kills = 0;
    for (let at = 1, survivors = 0; survivors < 2; at++) {
      survivors = 0;
      const world = await createWorld(NEWER);
      await leaveOlder(world);
      await commitAll(world, 20);
      for (const stage of ["judge", "fold"]) {
        if (stage === "fold") await freeze(world);
        const crash = crashAt(at, after);
        await reconcileKey(wrapped(world.ports, crash.around), ROUND).catch(() => undefined);
        if (crash.crashed()) kills += 1;
        else survivors += 1;
        await reconcile(world);
      }
      t.deepEqual(await outcomeOf(world), expected, `call ${at}`);
    }
    t.true(kills >= 20, `${kills} kills`);
  });
}

test("what a version wrote that did not say the round's uid counts as the round's", async (t) => {
  const world = await createWorld();
  await leaveOlder(world, "");
  await commitAll(world, 20);
  await reconcile(world);
  t.deepEqual((await tallyOf(world)).lastSeq, 1e6);
});

test("damage is noted in a tally of the round's own, and counted from one", async (t) => {
  const world = await createWorld();
  await commitAll(world, 20);
  await leaveOlder(world);
  const commits = () => Promise.reject(Object.assign(new Error("it is gone"), { code: "LOG_CORRUPT" }));
  const log = Object.assign(Object.create(world.log) as World["log"], { commits });
  await t.throwsAsync(reconcileKey({ ...world.ports, log }, ROUND), { code: "LOG_CORRUPT" });
  const { verdicts, failure, roundUid } = await tallyOf(world);
  t.like(failure, { attempts: 1, final: false });
  t.deepEqual(verdicts, []);
  t.is((await world.store.get("Round", ROUND))?.metadata?.uid, roundUid);
});

/** A frozen round of three shards. */
async function frozenShards(): Promise<World> {
  const world = await createWorld({ parameters: 263_000, foldShardValues: 131_072 });
  await commit(world, await upload(world, "ann", draw(263_000, 1)));
  await reconcileKey(world.ports, ROUND);
  await freeze(world);
  return world;
}

test("a shard is folded though an earlier round has a result, and never by another's tally", async (t) => {
  const world = await frozenShards();
  const metadata = newMeta(ROUND);
  await world.store.create("RoundResult", RoundResult.fromPartial({ metadata, roundUid: "older" }));
  await reconcileKey(world.ports, `${ROUND}/0`);
  t.is((await world.store.list("FoldShard")).items.length, 1);
  const tally = await tallyOf(world);
  await world.store.update("UpdateTally", { ...tally, roundUid: "older" });
  await t.throwsAsync(reconcileKey(world.ports, `${ROUND}/1`), { code: "BROKEN_INVARIANT" });
});

const roundOf = (name: string, uid: string, number = 1): Round =>
  Round.fromPartial({ metadata: { ...newMeta(name), uid }, spec: { job: "tiny", number, maxStaleness: 2 } });

test("a replica that was held up leaves the shard of the round that has the name by now", async (t) => {
  for (const [current, kept] of [
    ["own", "own"],
    ["newer", "newer"],
  ] as const) {
    const store = new MemoryResourceStore();
    await recordShard(store, roundOf(ROUND, "newer"), "fold", { index: 0, squares: 1, elapsedMs: 1 });
    await store.create("Round", roundOf(ROUND, current));
    await recordShard(store, roundOf(ROUND, "own"), "fold", { index: 0, squares: 2, elapsedMs: 1 });
    const { items } = await store.list("FoldShard");
    t.deepEqual(
      items.map(({ roundUid }) => roundUid),
      [kept],
    );
  }
});

test("a round takes over no updates that an older one of an earlier round's name judged", async (t) => {
  const store = new MemoryResourceStore();
  for (const [number, roundUid] of [
    [1, "older"],
    [2, "uid-2"],
  ] as const) {
    const name = `tiny-${number}`;
    await store.create("Round", roundOf(name, `uid-${number}`, number));
    await store.create("UpdateTally", UpdateTally.fromPartial({ metadata: newMeta(name), roundUid }));
  }
  const earlier = await readEarlier(store, { job: "tiny", number: 3, maxStaleness: 2 });
  t.deepEqual(
    earlier.map(({ tally }) => tally?.roundUid),
    [undefined, "uid-2"],
  );
});

async function replayed(t: ExecutionContext, world: World): Promise<string> {
  const answered = await new AggregatorApi(world.ports).replayRound(
    { job: "tiny", number: 1 },
    new AbortController().signal,
  );
  if (!answered.ok) return answered.refusal.code;
  for await (const { part } of answered.value) if (part?.$case === "outcome") t.true(part.value.equal);
  return "OK";
}

test("a replay is compared with what the round published, or with nothing", async (t) => {
  const world = await createWorld();
  await commitAll(world, 20);
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  t.is(await replayed(t, world), "OK");
  const result = await resultOf(world);
  if (result !== undefined) await world.store.update("RoundResult", { ...result, roundUid: "older" });
  t.is(await replayed(t, world), "FAILED_PRECONDITION");
});
