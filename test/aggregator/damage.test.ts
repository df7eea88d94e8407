import test from "ava";
import type { FoldFailure, UpdateTally } from "#proto/shoal/v1/round.js";
import { codeOf } from "#common/adapters/coded-error.js";
import { encodeResource, MOST_RESOURCE_BYTES, NOTE_BYTES } from "#common/adapters/resource-codecs.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { describeFailure, isDamage, withFailure } from "#common/domain/damage.js";
import { reconcileKey } from "#services/aggregator/controller.js";
import { loseBlob } from "#test/support/lost-blob.js";
import { commit, createWorld, draw, freeze, resultOf, setPhase, tallyOf, upload, type World } from "./world.js";

const MINUTE_MS = 60_000;

/** A round that is to be folded, and the clock of its aggregator. */
async function frozen(options = {}): Promise<World & { clock: ManualClock }> {
  const world = await createWorld(options);
  const clock = new ManualClock(1_000_000);
  const ports = { ...world.ports, clock };
  await commit(world, await upload(world, "ann", draw(world.base.length, 1)));
  await commit(world, await upload(world, "bob", draw(world.base.length, 2)));
  await reconcileKey(ports, "tiny-1");
  await freeze(world);
  return { ...world, ports, clock };
}

/** Tries a key so often; the codes of what was thrown, "" for nothing. */
async function tries({ ports }: World, count: number, key = "tiny-1"): Promise<string[]> {
  const codes: string[] = [];
  for (let i = 0; i < count; i++) {
    codes.push(
      await reconcileKey(ports, key).then(
        () => "",
        (error: unknown) => codeOf(error) ?? "unknown",
      ),
    );
  }
  return codes;
}

const failureOf = async (world: World): Promise<FoldFailure | undefined> =>
  ((await world.store.get("UpdateTally", "tiny-1")) as UpdateTally).failure;

test("a round whose log is damaged is tried for a while and then given up, with the reason; nothing is published", async (t) => {
  const world = await frozen();
  const [lost] = await world.log.commits("tiny-1");
  await world.log.purge({ round: "tiny-1", device: "ann", upToSeq: lost?.seq ?? 0 });
  t.deepEqual(
    await tries(world, 6),
    Array.from({ length: 6 }, () => "LOG_CORRUPT"),
  );
  t.like(await failureOf(world), { code: "LOG_CORRUPT", attempts: 5, final: false, firstAtMs: 1_000_000 });
  await world.clock.advance(MINUTE_MS);
  t.deepEqual(await tries(world, 2), ["", ""]);
  const failure = await failureOf(world);
  t.true(failure?.final);
  t.regex(failure?.message ?? "", /commit 2 of ann/);
  t.is(await resultOf(world), undefined, "bob's update alone is not what was frozen");
});

test("damage that is mended in time leaves the round as sound as it was", async (t) => {
  const undisturbed = await frozen();
  await tries(undisturbed, 1);
  const world = await frozen();
  const base = (await world.blobs.get(world.baseDigest)) as Uint8Array;
  await loseBlob(world.blobs, world.baseDigest);
  t.deepEqual(
    await tries(world, 5),
    Array.from({ length: 5 }, () => "BLOB_MISSING"),
  );
  await world.blobs.put(base);
  await world.clock.advance(MINUTE_MS);
  t.deepEqual(await tries(world, 1), [""]);
  t.false((await failureOf(world))?.final);
  t.is((await resultOf(world))?.weights?.digest, (await resultOf(undisturbed))?.weights?.digest);
});

test("a shard tells of damage as the whole round does, and a tally that vanished is damage too", async (t) => {
  const world = await frozen({ parameters: 263_000, foldShardValues: 131_072 });
  const [lost] = await world.log.commits("tiny-1");
  await world.log.purge({ round: "tiny-1", device: "ann", part: "chunk", upToSeq: lost?.seq ?? 0 });
  t.deepEqual(await tries(world, 1), [""], "the round itself only hands out its shards");
  t.deepEqual(
    await tries(world, 5, "tiny-1/0"),
    Array.from({ length: 5 }, () => "LOG_CORRUPT"),
  );
  await world.clock.advance(MINUTE_MS);
  t.deepEqual(await tries(world, 1, "tiny-1/1"), [""]);
  t.true((await failureOf(world))?.final);
  const none = await frozen();
  await none.log.purgeRound("tiny-1");
  await none.store.delete("UpdateTally", "tiny-1");
  t.deepEqual(await tries(none, 1), ["BROKEN_INVARIANT"]);
  t.like(await failureOf(none), { code: "BROKEN_INVARIANT", attempts: 1 });
});

/** The tally with as long a message as its store takes while nothing is noted. */
function filled(tally: UpdateTally): UpdateTally {
  const bytes = Buffer.byteLength(encodeResource("UpdateTally", tally));
  const message = "x".repeat(MOST_RESOURCE_BYTES - NOTE_BYTES - bytes);
  return { ...tally, verdicts: tally.verdicts.map((verdict, i) => (i === 0 ? { ...verdict, message } : verdict)) };
}

test("a tally that verdicts have filled still says why the round ends, at any length", async (t) => {
  const world = await frozen();
  const tally = await tallyOf(world);
  const full = filled({ ...tally, verdicts: tally.verdicts.map((verdict) => ({ ...verdict, message: "x" })) });
  await world.store.update("UpdateTally", full);
  await commit(world, await upload(world, "cyd", draw(world.base.length, 3)));
  t.deepEqual(await tries(world, 1), ["RESOURCE_TOO_LARGE"], "there is no room for another verdict");
  t.like(await failureOf(world), { code: "RESOURCE_TOO_LARGE", attempts: 1 });
  // Each character of it is six in JSON.
  const commits = () => Promise.reject(Object.assign(new Error("\u0001".repeat(600)), { code: "BROKEN_INVARIANT" }));
  const log = Object.assign(Object.create(world.log) as World["log"], { commits });
  const failing = { ...world, ports: { ...world.ports, log } };
  await tries(failing, 5);
  await world.clock.advance(MINUTE_MS);
  t.deepEqual(await tries(failing, 1), [""]);
  t.like(await failureOf(world), { code: "BROKEN_INVARIANT", attempts: 5, final: true });
  t.deepEqual(await tries(world, 1), ["RESOURCE_TOO_LARGE"], "a note takes no room of verdicts, and gives them none");
});

test("failures of a round that is over, or that are no damage, are noted nowhere", async (t) => {
  const world = await frozen();
  const failing = (code: string): World => {
    const commits = () => Promise.reject(Object.assign(new Error("it is away"), { code }));
    const log = Object.assign(Object.create(world.log) as World["log"], { commits });
    return { ...world, ports: { ...world.ports, log } };
  };
  t.deepEqual(await tries(failing("TIMEOUT"), 1), ["TIMEOUT"]);
  t.is((await tallyOf(world)).failure, undefined);
  await setPhase(world, "Failed");
  t.deepEqual(await tries(failing("LOG_CORRUPT"), 1), ["LOG_CORRUPT"]);
  t.is((await tallyOf(world)).failure, undefined);
});

const damage = (code: string, nowMs: number, before?: FoldFailure): FoldFailure =>
  withFailure(before, { code, message: "x".repeat(2000) }, nowMs);

test("it is final after five times and a minute, whatever the clock does, and another kind counts anew", (t) => {
  let failure = damage("LOG_CORRUPT", 90_000);
  t.is(failure.message.length, 500);
  for (let i = 0; i < 3; i++) failure = damage("LOG_CORRUPT", 500_000, failure);
  t.like(failure, { attempts: 4, final: false });
  t.true(damage("LOG_CORRUPT", 500_000, failure).final);
  t.like(damage("BLOB_MISSING", 500_000, failure), { attempts: 1, firstAtMs: 500_000, final: false });
  const early = damage("LOG_CORRUPT", 1_000, failure);
  t.like(early, { attempts: 5, firstAtMs: 1_000, final: false });
  t.is(damage("LOG_CORRUPT", 60_999, early), early, "nothing new is nothing to write");
  const over = damage("LOG_CORRUPT", 61_000, early);
  t.true(over.final);
  t.is(damage("LOG_CORRUPT", 0, { ...over, firstAtMs: 0 }).final, true);
  const unknown = { ...damage("UNSUPPORTED", 0), attempts: 5, lastAtMs: 10 * MINUTE_MS };
  t.is(damage("UNSUPPORTED", 10 * MINUTE_MS, unknown), unknown, "an aggregator of another version may do it");
  t.true(isDamage("BLOB_CORRUPT"));
  t.false(isDamage("TIMEOUT") || isDamage(undefined));
});

test("failures long apart are not one that goes on, and one that goes on is noted once a minute", (t) => {
  let failure: FoldFailure = damage("BLOB_MISSING", 0);
  for (let i = 1; i < 5; i++) failure = damage("BLOB_MISSING", i * 1000, failure);
  t.like(failure, { attempts: 5, final: false, firstAtMs: 0, lastAtMs: 4000 });
  t.is(damage("BLOB_MISSING", 10_000, failure), failure);
  t.true(damage("BLOB_MISSING", 4000 + 59 * MINUTE_MS, failure).final, "a fold may take long");
  t.like(damage("BLOB_MISSING", 4000 + 61 * MINUTE_MS, failure), {
    attempts: 1,
    final: false,
    firstAtMs: 4000 + 61 * MINUTE_MS,
  });
  let goingOn: FoldFailure = damage("UNSUPPORTED", 0);
  for (let minute = 1; minute < 60; minute++) goingOn = damage("UNSUPPORTED", minute * MINUTE_MS, goingOn);
  t.like(goingOn, { attempts: 5, firstAtMs: 0, lastAtMs: 59 * MINUTE_MS });
  t.like(damage("BLOB_MISSING", 3_600_000, { ...failure, lastAtMs: 0 }), { final: true }, "an older note goes on");
  const over = { ...failure, final: true };
  t.true(damage("BLOB_MISSING", 3_600_000, over).final, "what was given up stays so");
});

test("people are told what is damaged and what to do", (t) => {
  for (const code of ["LOG_CORRUPT", "BLOB_MISSING", "BLOB_CORRUPT", "RESOURCE_TOO_LARGE", "BROKEN_INVARIANT"]) {
    const { message } = describeFailure({ ...damage(code, 0), message: "it is gone", final: true }, "tiny");
    t.regex(
      message,
      new RegExp(`^it is gone \\(${code}\\): nothing of the round was published; .*spec.model.base: tiny`),
    );
  }
  const { reason, message } = describeFailure({ ...damage("LOG_CORRUPT", 0), message: "it is gone" }, "tiny");
  t.is(reason, "LogCorrupt");
  t.regex(message, /it is tried again; look for what damaged the update log/);
  t.is(describeFailure(damage("OTHER", 0), "tiny").reason, "Failed");
});
