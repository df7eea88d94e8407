import test, { type ExecutionContext } from "ava";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { reconcileKey, reconcileRound, type AggregatorPorts } from "#services/aggregator/controller.js";
import { replayRound } from "#services/aggregator/replay.js";
import { RunningSums } from "#services/aggregator/running-sums.js";
import { crashAt, wrapped, type Around } from "./disturbance.js";
import {
  commit,
  createWorld,
  DEVICES,
  drain,
  draw,
  freeze,
  reconcile,
  resultOf,
  tallyOf,
  upload,
  type World,
} from "./world.js";

const honest = async (world: World): Promise<void> => {
  for (const [i, device] of DEVICES.entries()) {
    const manifest = await upload(world, device, draw(600, i), 10 - i);
    await commit(world, manifest);
    if (i === 1) await commit(world, manifest);
  }
};

async function undisturbed(strategy = "diloco"): Promise<{ weights: string; outer: string }> {
  const world = await createWorld({ codec: "int8", strategy });
  await honest(world);
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  const result = await resultOf(world);
  return { weights: result?.weights?.digest ?? "", outer: result?.outerState?.digest ?? "" };
}

for (const [strategy, after] of [
  ["diloco", false],
  ["diloco", true],
  ["trimmedMean", false],
  ["centeredClipping", true],
] as const) {
  test(`${strategy} killed ${after ? "after" : "before"} any call: the round comes to the same bits, every commit judged once`, async (t) => {
    const expected = await undisturbed(strategy);
    let kills = 0;
    let survivors = 0;
    for (let at = 1; survivors < 2; at++) {
      survivors = 0;
      const world = await createWorld({ codec: "int8", strategy, retainRounds: 2 });
      await honest(world);
      for (const stage of ["judge", "fold"]) {
        if (stage === "fold") await freeze(world);
        const crash = crashAt(at, after);
        try {
          await reconcileRound(wrapped(world.ports, crash.around), "tiny-1");
        } catch {
          t.true(crash.crashed());
        }
        if (crash.crashed()) kills += 1;
        else survivors += 1;
        await reconcile(world);
      }
      const result = await resultOf(world);
      t.deepEqual({ weights: result?.weights?.digest, outer: result?.outerState?.digest }, expected, `call ${at}`);
      t.deepEqual(
        (await tallyOf(world)).verdicts.map((each) => each.reason),
        ["", "", "Duplicate", ""],
      );
      t.deepEqual(
        result?.folded.map((each) => each.manifest?.device),
        DEVICES,
      );
      t.is(result?.refused.length, 1);
    }
    t.true(kills >= 20, `${kills} kills`);
  });
}

/** Lets a few turns of the event loop pass before each call, as many as the seed says. */
const jitter =
  (rng: Rng): Around =>
  async (call) => {
    for (let turns = rng.int(4); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
    return call();
  };

test("two replicas interleaved at random agree on verdicts and on one result", async (t) => {
  const expected = await undisturbed();
  for (let seed = 0; seed < 40; seed++) {
    const world = await createWorld({ codec: "int8" });
    const rng = createRng(seed);
    const replicas = [wrapped(world.ports, jitter(rng)), wrapped(world.ports, jitter(rng))];
    const both = (): Promise<unknown> => Promise.all(replicas.map((ports) => reconcileRound(ports, "tiny-1")));
    const judging = both();
    await honest(world);
    await judging;
    await both();
    await freeze(world);
    await both();
    const result = await resultOf(world);
    t.deepEqual({ weights: result?.weights?.digest, outer: result?.outerState?.digest }, expected, `seed ${seed}`);
    t.deepEqual(
      (await tallyOf(world)).verdicts.map((each) => each.reason),
      ["", "", "Duplicate", ""],
    );
    t.is(world.metrics.value("shoal_updates_judged_total", { verdict: "Accepted" }), 3);
    t.is(world.metrics.observations("shoal_fold_seconds").length, 1);
  }
});

test("the fold set's order decides the bits, the order of arrival does not", async (t) => {
  const digests = new Set<string>();
  for (const arrival of [
    ["ann", "bob", "cyd"],
    ["cyd", "ann", "bob"],
    ["bob", "cyd", "ann"],
  ]) {
    const world = await createWorld();
    for (const device of arrival) {
      const i = DEVICES.indexOf(device);
      await commit(world, await upload(world, device, draw(600, i), 10 - i));
    }
    await reconcile(world);
    await freeze(world, DEVICES);
    await reconcile(world);
    const replayed = await replayRound(world.ports, "tiny-1");
    const result = await resultOf(world);
    t.deepEqual(replayed, {
      weightsDigest: result?.weights?.digest ?? "",
      outerDigest: result?.outerState?.digest ?? "",
      deltaDigest: "",
    });
    digests.add(replayed.weightsDigest);
  }
  t.is(digests.size, 1);
});

/** Two fp32 chunks and a bit, each a shard. */
const LARGE = { parameters: 263_000, codec: "fp32", foldShardValues: 131_072 };
const large = DEVICES.map((_, i) => draw(LARGE.parameters, i));
const sharedLog = new MemoryUpdateLog();

/** A frozen round of three shards. All worlds share one log, which a fold does not write. */
async function frozen(strategy: string, sumsMaxBytes = 0): Promise<World> {
  const world = await createWorld({ ...LARGE, strategy, log: sharedLog, sumsMaxBytes });
  if ((await sharedLog.commits("tiny-1")).length === 0) {
    for (const [i, device] of DEVICES.entries())
      await commit(world, await upload(world, device, large[i] as Float32Array, 10 - i));
  }
  await reconcile(world);
  await freeze(world);
  return world;
}

const outcomeOf = async (world: World): Promise<unknown[]> => {
  const result = await resultOf(world);
  return [result?.weights?.digest, result?.outerState?.digest, result?.updateNorm];
};
const expectedOf = async (strategy: string): Promise<unknown[]> => {
  const world = await frozen(strategy);
  await reconcile(world);
  return outcomeOf(world);
};

/** Folds a frozen round, killed at a call. @returns whether it came to that. */
async function foldKilledAt(t: ExecutionContext, world: World, at: number, after: boolean): Promise<boolean> {
  const crash = crashAt(at, after);
  const ports = wrapped(world.ports, crash.around);
  try {
    await reconcileKey(ports, "tiny-1");
    await drain(world, ports);
  } catch {
    t.true(crash.crashed());
  }
  return crash.crashed();
}

// The last has every kind of call; of the others each third one is enough.
for (const [strategy, after, stride] of [
  ["fedadam", false, 3],
  ["median", true, 3],
  ["centeredClipping", true, 1],
] as const) {
  const calls = stride === 1 ? "any call" : "some calls";
  test(`${strategy} in shards killed ${after ? "after" : "before"} ${calls}: the same bits, and nothing is left behind`, async (t) => {
    const expected = await expectedOf(strategy);
    let kills = 0;
    for (let at = 1; ; at += stride) {
      const world = await frozen(strategy);
      if (!(await foldKilledAt(t, world, at, after))) break;
      kills += 1;
      // Redis is wiped, too: a resync brings the round's own key.
      if (at % 2 === 0) world.keys.clear();
      await reconcile(world);
      t.deepEqual(await outcomeOf(world), expected, `call ${at}`);
      t.deepEqual((await world.store.list("FoldShard")).items, []);
      t.deepEqual(world.blobs.staged(), []);
    }
    t.true(kills >= 50 / stride, `${kills} kills`);
  });
}

for (const [whoGoesOn, after] of [
  ["the same process", false],
  ["another process", true],
] as const) {
  test(`diloco from its sums killed at any call: ${whoGoesOn} comes to the same bits, and nothing is left behind`, async (t) => {
    const expected = await expectedOf("diloco");
    let kills = 0;
    for (let at = 1; ; at++) {
      const world = await frozen("diloco", 2 ** 22);
      if (!(await foldKilledAt(t, world, at, after))) break;
      kills += 1;
      if (after) world.ports.sums = new RunningSums(0);
      await reconcile(world);
      t.deepEqual(await outcomeOf(world), expected, `call ${at}`);
      t.deepEqual((await world.store.list("FoldShard")).items, []);
      // What was sealed lies where it was staged.
      t.deepEqual((await world.blobs.contents()).stages, [], `call ${at}`);
    }
    t.true(kills >= 15, `${kills} kills`);
  });
}

test("two replicas share the shards of a round, one killed now and then, and come to the same bits", async (t) => {
  for (const strategy of ["diloco", "krum"]) {
    const expected = await expectedOf(strategy);
    const worked = [0, 0];
    for (let seed = 0; seed < 4; seed++) {
      const world = await frozen(strategy);
      const rng = createRng(seed);
      const replica = async (ports: AggregatorPorts): Promise<void> => {
        await reconcileKey(ports, "tiny-1");
        await drain(world, ports);
      };
      await Promise.all(
        [0, 1].map(async (k) => {
          const crash = crashAt(seed % 2 === k ? 10 + rng.int(40) : Infinity, seed % 4 < 2);
          const shardDone = (pass: string, seconds: number): void => {
            worked[k] = (worked[k] ?? 0) + 1;
            world.ports.meters.shardDone(pass, seconds);
          };
          const ports = wrapped(wrapped(world.ports, crash.around), jitter(rng));
          await replica({ ...ports, meters: { ...ports.meters, shardDone } }).catch((error: unknown) => {
            if (!crash.crashed()) throw error;
          });
        }),
      );
      await reconcile(world);
      t.deepEqual(await outcomeOf(world), expected, `${strategy}, seed ${seed}`);
      t.deepEqual((await world.store.list("FoldShard")).items, []);
    }
    t.true(Math.min(...worked) > 0, `${strategy}: ${worked.join(" and ")} shards`);
  }
});
