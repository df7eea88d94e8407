import test from "ava";
import { Round, type RoundResult, type RoundTask } from "#proto/shoal/v1/round.js";
import { downCodec } from "#common/domain/down-link.js";
import { fragmentOfRound } from "#common/domain/fragment.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { encodeStep } from "#common/tensor/encoded-step.js";
import { fromBytes } from "#common/tensor/flat.js";
import type { Stretch } from "#common/tensor/stretches.js";
import { gather } from "#common/tensor/stretches.js";
import { weightsStep } from "#agent/weights-step.js";
import { keptShape, partState } from "#services/aggregator/down-link.js";
import { replayRound } from "#services/aggregator/replay.js";
import { play } from "./history.js";
import { foldRoundOf, memorySource, specOf } from "./source.js";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  freeze,
  JOB,
  openRound,
  reconcile,
  resultOf,
  upload,
  type World,
  type WorldOptions,
} from "./world.js";

const int4 = codecByName("int4") as Codec;
/** Two fp32 chunks and a bit. */
const PARAMETERS = 263_000;
const SHARD = 131_072;
const SMALL = 1500;

const bytesOf = async ({ blobs }: World, digest: string | undefined): Promise<Uint8Array> =>
  (await blobs.get(digest ?? "")) as Uint8Array;
const taskOf = async (world: World, number: number): Promise<RoundTask> =>
  (await world.store.get("Round", `${JOB}-${number}`))?.spec?.task as RoundTask;

async function playRound(
  world: World,
  number: number,
  deltas: readonly Float32Array[],
  options: WorldOptions,
): Promise<RoundResult> {
  const { weights } = await taskOf(world, number);
  for (const [k, delta] of deltas.entries()) {
    const device = DEVICES[k] as string;
    const manifest = await upload(world, device, delta, 10, number);
    await commit(world, { ...manifest, baseDigest: weights?.digest ?? "" }, device, number);
  }
  await reconcile(world, number);
  await freeze(world, undefined, number);
  await reconcile(world, number);
  const result = (await resultOf(world, number)) as RoundResult;
  await openRound(world, number + 1, { ...options, start: result });
  return result;
}

/** What an agent makes of the weights before and the change, as the next round's task names them. */
async function taken(world: World, number: number): Promise<Uint8Array | undefined> {
  const task = await taskOf(world, number);
  const step = weightsStep(task);
  return step?.apply(await bytesOf(world, step.base), await bytesOf(world, step.change.digest));
}

const digestOf = (bytes: Uint8Array | undefined): string => sha256Digest(bytes ?? new Uint8Array());

for (const strategy of ["fedavg", "diloco", "fedadam", "centeredClipping"]) {
  test(`${strategy}: a round publishes what the encoded change leads to, and carries what it lost`, async (t) => {
    const options = { strategy, down: "int4", parameters: SMALL };
    const world = await createWorld(options);
    let weights = world.base;
    let state: Float32Array | undefined;
    let residual: Float32Array | undefined;
    for (const number of [1, 2, 3]) {
      const deltas = DEVICES.map((_, k) => draw(SMALL, 10 * number + k));
      const result = await playRound(world, number, deltas, options);
      const exact = await foldRoundOf(memorySource(deltas, undefined, SMALL), specOf(strategy), { weights, state });
      const step = encodeStep(weights, exact.weights, residual, int4);
      ({ values: weights, residual } = step);
      ({ state } = exact);
      t.deepEqual(fromBytes(await bytesOf(world, result.weights?.digest)), weights);
      const vectors = Math.floor((state?.length ?? 0) / SMALL) * SMALL;
      const own = state ?? new Float32Array();
      const kept = [...own.subarray(0, vectors), ...residual, ...own.subarray(vectors)];
      t.deepEqual(fromBytes(await bytesOf(world, result.outerState?.digest)), Float32Array.from(kept));
      t.deepEqual(await bytesOf(world, result.delta?.blob?.digest), new Uint8Array(Buffer.concat(step.chunks)));
      t.like(result.delta, { baseDigest: (await taskOf(world, number)).weights?.digest ?? "", partValues: [SMALL] });
      t.is(digestOf(await taken(world, number + 1)), result.weights?.digest ?? "");
      t.deepEqual(await replayRound(world.ports, `${JOB}-${number}`), {
        weightsDigest: result.weights?.digest ?? "",
        outerDigest: result.outerState?.digest ?? "",
        deltaDigest: result.delta?.blob?.digest ?? "",
      });
    }
    t.true(residual?.some((value) => value !== 0));
  });
}

for (const strategy of ["diloco", "fedadam", "krum"]) {
  test(`${strategy} in three shards publishes the change in three parts, and the same weights`, async (t) => {
    const digests: (string | undefined)[][] = [];
    for (const foldShardValues of [0, SHARD]) {
      const options = { strategy, down: "int8", parameters: PARAMETERS, foldShardValues };
      const world = await createWorld(options);
      const found: (string | undefined)[] = [];
      for (const number of [1, 2]) {
        const deltas = DEVICES.map((_, k) => draw(PARAMETERS, 10 * number + k));
        const result = await playRound(world, number, deltas, options);
        t.is(result.delta?.partValues.length, foldShardValues === 0 ? 1 : 3);
        t.is(digestOf(await taken(world, number + 1)), result.weights?.digest ?? "");
        const replayed = await replayRound(world.ports, `${JOB}-${number}`);
        t.deepEqual(
          [replayed.weightsDigest, replayed.outerDigest, replayed.deltaDigest],
          [result.weights?.digest, result.outerState?.digest, result.delta?.blob?.digest],
        );
        found.push(result.weights?.digest, result.outerState?.digest);
      }
      digests.push(found);
      t.deepEqual((await world.store.list("FoldShard")).items, []);
      t.deepEqual(world.blobs.staged(), []);
    }
    // Shards begin where blocks of a scale do.
    t.deepEqual(digests[1], digests[0]);
  });
}

test("a staged part of the change that is lost is folded again", async (t) => {
  const options = { down: "int4", parameters: PARAMETERS, foldShardValues: SHARD };
  const deltas = DEVICES.map((_, k) => draw(PARAMETERS, k));
  const whole = await createWorld(options);
  const expected = await playRound(whole, 1, deltas, options);
  const world = await createWorld(options);
  const stage = world.blobs.stage.bind(world.blobs);
  let lost = 0;
  world.blobs.stage = (name, part, bytes) => {
    if (!name.startsWith("delta-") || part !== 1 || lost > 0) return stage(name, part, bytes);
    lost += 1;
    return Promise.resolve();
  };
  const result = await playRound(world, 1, deltas, options);
  t.is(lost, 1);
  t.deepEqual(result.delta, expected.delta);
});

test("a round in which nobody trained names no change and keeps what was lost", async (t) => {
  const options = { down: "int4" };
  const world = await createWorld(options);
  const first = await playRound(world, 1, [draw(600, 1)], options);
  const second = await playRound(world, 2, [], options);
  t.is(second.delta, undefined);
  t.deepEqual(second.weights, first.weights);
  t.deepEqual(second.outerState, first.outerState);
  t.is(weightsStep(await taskOf(world, 3)), undefined);
  const third = await playRound(world, 3, [draw(600, 2)], options);
  t.truthy(third.delta);
  t.is(digestOf(await taken(world, 4)), third.weights?.digest ?? "");
});

test("of a fragment only its own values change, and only they lose something", async (t) => {
  const stretches: Stretch[][] = [0, 1].map((part) =>
    Array.from({ length: 5 }, (_, i) => ({ start: 400 * i + 200 * part, length: 200 })),
  );
  const options = { strategy: "streamingDiloco", down: "int4", parameters: 2000 };
  const world = await createWorld(options);
  const cut = async (number: number): Promise<void> => {
    const round = (await world.store.get("Round", `${JOB}-${number}`)) as Round;
    const fragments = stretches.map((ranges) => ({ ranges: [...ranges] }));
    const task = { ...round.spec?.task, fragments, fragment: fragmentOfRound(number, 2) };
    await world.store.update("Round", Round.fromPartial({ ...round, spec: { ...round.spec, task } }));
  };
  await cut(1);
  let residual = new Float32Array(2000);
  for (const number of [1, 2, 3]) {
    const [own, other] = (number % 2 === 1 ? stretches : stretches.toReversed()) as [Stretch[], Stretch[]];
    const before = fromBytes(await bytesOf(world, (await taskOf(world, number)).weights?.digest));
    const result = await playRound(
      world,
      number,
      DEVICES.map((_, k) => draw(1000, 10 * number + k)),
      options,
    );
    await cut(number + 1);
    const after = fromBytes(await bytesOf(world, result.weights?.digest));
    t.deepEqual(gather(after, other), gather(before, other));
    t.notDeepEqual(gather(after, own), gather(before, own));
    const kept = fromBytes(await bytesOf(world, result.outerState?.digest)).slice(2000);
    t.deepEqual(gather(kept, other), gather(residual, other));
    t.true(gather(kept, own).some((value) => value !== 0));
    residual = kept;
    t.is(result.delta?.fragment, fragmentOfRound(number, 2));
    t.is(digestOf(await taken(world, number + 1)), result.weights?.digest ?? "");
    const replayed = await replayRound(world.ports, `${JOB}-${number}`);
    t.is(replayed.deltaDigest, result.delta?.blob?.digest ?? "");
  }
});

test("a lineage with encoded changes is verified, and a forged one is found", async (t) => {
  const world = await play({ down: "int4" });
  const { AggregatorApi } = await import("#services/aggregator/aggregator-api.js");
  const walk = async (): Promise<string[]> => {
    const asked = { job: JOB, firstRound: 0, lastRound: 0, replay: true };
    const answered = await new AggregatorApi(world.ports).verifyJob(asked, new AbortController().signal);
    const broken: string[] = [];
    if (!answered.ok) throw new Error(JSON.stringify(answered.refusal));
    for await (const { part } of answered.value) {
      if (part?.$case !== "round") continue;
      const { number, checks } = part.value;
      for (const { name, outcome } of checks) if (outcome === "Broken") broken.push(`${number} ${name}`);
      if (number > 0) t.true(checks.some(({ name }) => name === "delta"));
    }
    return broken;
  };
  t.deepEqual(await walk(), []);
  const third = (await resultOf(world, 3)) as RoundResult;
  const other = await world.blobs.put(Uint8Array.of(1, 2, 3));
  const forged = { ...third, delta: third.delta && { ...third.delta, blob: other } };
  await world.store.update("RoundResult", forged);
  t.deepEqual(await walk(), ["3 replay", "4 start"]);
});

test("a codec of the way down that nobody knows is not folded as if there were none", async (t) => {
  const world = await createWorld({ down: "int3" });
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await reconcile(world);
  await freeze(world);
  await t.throwsAsync(reconcile(world), { code: "UNSUPPORTED" });
  t.is(downCodec({ down: "int3" }), undefined);
  t.is(weightsStep(await taskOf(world, 1)), undefined);
});

test("a kept state is the strategy's own, with what was lost after its vectors", (t) => {
  const adaptive = { vectors: 2, scalars: 1 };
  t.deepEqual(keptShape(adaptive, true), { vectors: 3, scalars: 1 });
  t.deepEqual(keptShape(adaptive, false), adaptive);
  const kept = Float32Array.of(1, 2, 3, 4, 5, 6, 7);
  t.deepEqual(partState(adaptive, 2, kept), { state: Float32Array.of(1, 2, 3, 4, 7), residual: Float32Array.of(5, 6) });
  t.deepEqual(partState({ vectors: 0, scalars: 0 }, 7, kept), { state: undefined, residual: kept });
  t.deepEqual(partState({ vectors: 7, scalars: 0 }, 1, kept), { state: kept, residual: undefined });
  t.throws(() => partState({ vectors: 1, scalars: 0 }, 2, kept), { message: /7 values/ });
});
