import test from "ava";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { RoundResult } from "#proto/shoal/v1/round.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { createRng } from "#common/domain/rng.js";
import { newMeta } from "#common/domain/resources.js";
import { toBytes } from "#common/tensor/flat.js";
import { AggregatorApi } from "#services/aggregator/aggregator-api.js";
import { BlobCollector, keepCollectingBlobs, type BlobCollectorPorts } from "#services/aggregator/blob-collector.js";
import { stagesOf } from "#services/aggregator/fold-records.js";
import { blobMeters } from "#services/aggregator/meters.js";
import { loseBlob } from "#test/support/lost-blob.js";
import { forge, play } from "./history.js";
import { draw, JOB, openRound, resultOf, type World } from "./world.js";

const GRACE_MS = 1000;

interface Collection {
  clock: ManualClock;
  metrics: MemoryMetrics;
  ports: BlobCollectorPorts;
  /** Scans for as long as the grace. */
  pass: () => Promise<void>;
}

function collectionOf(world: Pick<World, "store" | "blobs">, retainRounds = 1): Collection {
  const clock = new ManualClock();
  const metrics = new MemoryMetrics();
  const { store, blobs } = world;
  const meters = blobMeters(metrics);
  const ports = { store, blobs, clock, journal: new MemoryLog(), meters, retainRounds, graceMs: GRACE_MS };
  const collector = new BlobCollector(ports);
  const pass = async (): Promise<void> => {
    for (let i = 0; i <= 10; i++) {
      await collector.scan();
      await clock.advance(GRACE_MS / 10);
    }
  };
  return { clock, metrics, ports, pass };
}

async function present(world: World, number: number): Promise<boolean> {
  const { weights } = (await resultOf(world, number)) ?? {};
  return (await world.blobs.stat(weights?.digest ?? "")) !== undefined;
}

test("weights and state that no retained round starts from or came to go; theirs and the model's stay", async (t) => {
  const world = await play();
  const before = await world.blobs.contents();
  const junk = await world.blobs.put(toBytes(draw(100, 5)));
  const { pass, metrics } = collectionOf(world);
  await pass();
  t.deepEqual(await Promise.all([1, 2, 3, 4].map((number) => present(world, number))), [false, true, true, true]);
  t.is(await world.blobs.stat(junk.digest), undefined);
  t.is((await world.blobs.stat(world.baseDigest))?.digest, undefined, "the job's start");
  const left = await world.blobs.contents();
  // Of round 1: weights, the start, and diloco's momentum.
  t.is(before.blobs.length - left.blobs.length, 3);
  t.is(metrics.value("shoal_blobs_collected_total", { what: "Blob" }), 4);
  t.is(metrics.value("shoal_blobs_collected_bytes_total"), before.bytes - left.bytes + 400);
  await pass();
  t.is(metrics.value("shoal_blobs"), left.blobs.length);
  t.is((await world.blobs.contents()).blobs.length, left.blobs.length);
});

test("what is collected is told by verify, and not blamed; what should be there is", async (t) => {
  const world = await play();
  await collectionOf(world).pass();
  const verify = async (): Promise<string[]> => {
    const request = { job: JOB, firstRound: 0, lastRound: 0, replay: true };
    const answered = await new AggregatorApi({ ...world.ports, retainRounds: 1 }).verifyJob(
      request,
      new AbortController().signal,
    );
    if (!answered.ok) throw new Error(JSON.stringify(answered.refusal));
    const told: string[] = [];
    for await (const { part } of answered.value) {
      if (part?.$case !== "round") continue;
      const { number, checks } = part.value;
      for (const { name, outcome } of checks) if (outcome !== "Verified") told.push(`${number} ${name} ${outcome}`);
    }
    return told;
  };
  const unverifiable = ["commits", "weights", "outerState"].map((name) => `1 ${name} Unverifiable`);
  // The origin is drawn from the seed and has the digest of the first round's start, stored or not.
  t.deepEqual(await verify(), [...unverifiable, "2 commits Unverifiable"]);
  const { weights } = (await resultOf(world, 3)) ?? {};
  await loseBlob(world.blobs, weights?.digest);
  const broken = (await verify()).filter((told) => told.endsWith("Broken"));
  t.deepEqual(broken, ["3 weights Broken", "4 replay Broken"]);
});

test("with all rounds retained nothing goes that a round refers to", async (t) => {
  const world = await play({ retainRounds: 0 });
  const { blobs } = await world.blobs.contents();
  await collectionOf(world, 0).pass();
  t.is((await world.blobs.contents()).blobs.length, blobs.length);
});

test("what a fold under way stages stays; what a round left that is gone does not", async (t) => {
  const world = await play();
  const { weights, outerState } = (await resultOf(world, 4)) ?? {};
  await openRound(world, 5, { start: { weights, outerState } });
  const { uid = "" } = (await world.store.get("Round", `${JOB}-5`))?.metadata ?? {};
  for (const stage of [...Object.values(stagesOf(uid)), ...Object.values(stagesOf("gone"))])
    await world.blobs.stage(stage, 0, new Uint8Array(8));
  const { pass, metrics } = collectionOf(world);
  await pass();
  t.deepEqual(world.blobs.staged().sort(), Object.values(stagesOf(uid)).sort());
  t.is(metrics.value("shoal_blobs_collected_total", { what: "Stage" }), Object.values(stagesOf("gone")).length);
  await forge(world, "Round", `${JOB}-5`, (round) => ({
    ...round,
    status: { ...(round.status as NonNullable<typeof round.status>), phase: "Failed" },
  }));
  await pass();
  t.deepEqual(world.blobs.staged(), []);
});

test("what an earlier round of its name came to goes, though its result lies there", async (t) => {
  const world = await play();
  const { weights, outerState } = (await resultOf(world, 4)) ?? {};
  await openRound(world, 5, { start: { weights, outerState } });
  const result = RoundResult.fromPartial({ metadata: newMeta(`${JOB}-5`), roundUid: "older" });
  const left = await world.blobs.put(toBytes(draw(100, 5)));
  await world.store.create("RoundResult", { ...result, weights: left });
  await collectionOf(world).pass();
  t.is(await world.blobs.stat(left.digest), undefined);
  t.true(await present(world, 4));
});

test("a deleted job's blobs go, its model's stay", async (t) => {
  const world = await play();
  const { weights } = (await resultOf(world, 4)) ?? {};
  for (const number of [1, 2, 3, 4]) {
    await world.store.delete("RoundResult", `${JOB}-${number}`);
    await world.store.delete("Round", `${JOB}-${number}`);
  }
  await world.store.delete("TrainingJob", JOB);
  await collectionOf(world).pass();
  t.deepEqual(
    (await world.blobs.contents()).blobs.map(({ digest }) => digest),
    [weights?.digest ?? ""],
  );
});

test("an outage begins the grace again, and a failing look is tried again", async (t) => {
  const world = await play();
  const junk = await world.blobs.put(new Uint8Array(5));
  const { clock, ports } = collectionOf(world);
  const state = { isDown: true };
  const store = new Proxy(ports.store, {
    get: (target, key) => {
      if (key === "list" && state.isDown) return () => Promise.reject(new Error("down"));
      const member: unknown = Reflect.get(target, key);
      return typeof member === "function" ? (member.bind(target) as unknown) : member;
    },
  });
  const journal = new MemoryLog();
  const stop = new AbortController();
  const running = keepCollectingBlobs({ ...ports, store, journal }, stop.signal);
  const tick = async (ms: number): Promise<void> => {
    for (let passed = 0; passed < ms; passed += 500) await clock.advance(500);
  };
  await tick(5000);
  t.true(journal.lines.some(({ message }) => message.includes("could not be collected")));
  state.isDown = false;
  await tick(1000);
  state.isDown = true;
  await tick(5000);
  state.isDown = false;
  await tick(500);
  t.deepEqual(await world.blobs.stat(junk.digest), junk, "seen twice before the outage, once after it");
  await tick(2000);
  t.is(await world.blobs.stat(junk.digest), undefined);
  stop.abort();
  await running;
});

/** Writers that refer to what they put within the grace, whatever was there before; collectors look in between. */
test("nobody who writes down within the grace what he put ever finds it gone", async (t) => {
  for (let seed = 1; seed <= 20; seed++) {
    const rng = createRng(seed);
    const store = new MemoryResourceStore(new ManualClock());
    const blobs = new MemoryBlobStore();
    const { clock, ports } = collectionOf({ store, blobs });
    const collectors = [new BlobCollector(ports), new BlobCollector(ports)];
    /** By the content's number: what was put and is not yet written down, and until when it must be. */
    const pending = new Map<number, number>();
    const named = new Set<number>();
    for (let turn = 0; turn < 300; turn++) {
      const content = rng.int(4);
      const name = `job-${content}`;
      const ref = await blobs.stat((await digestsOf)[content] ?? "");
      const dice = rng.uniform();
      if (dice < 0.15) {
        if (dice < 0.1 || (await blobs.touch(ref?.digest ?? "")) === undefined) await blobs.put(contentOf(content));
        pending.set(content, clock.monotonicMs() + 0.9 * GRACE_MS);
      } else if (dice < 0.25 && pending.has(content) && !named.has(content)) {
        const weights = { digest: (await digestsOf)[content] ?? "", sizeBytes: 100 };
        await store.create("TrainingJob", TrainingJob.fromPartial({ metadata: newMeta(name), status: { weights } }));
        named.add(content);
      } else if (dice < 0.35 && named.has(content)) {
        await store.delete("TrainingJob", name);
        named.delete(content);
        pending.delete(content);
      } else {
        await clock.advance(50);
        await collectors[rng.int(2)]?.scan();
      }
      for (const [put, untilMs] of pending) if (!named.has(put) && untilMs < clock.monotonicMs()) pending.delete(put);
      for (const needed of [...named, ...pending.keys()])
        t.not(await blobs.stat((await digestsOf)[needed] ?? ""), undefined, `seed ${seed}, turn ${turn}, ${needed}`);
    }
    await collectionOf({ store, blobs }).pass();
    t.is((await blobs.contents()).blobs.length, named.size);
  }
});

const contentOf = (content: number): Uint8Array => new Uint8Array(100).fill(content);
const digestsOf = Promise.all([0, 1, 2, 3].map(async (n) => (await new MemoryBlobStore().put(contentOf(n))).digest));
