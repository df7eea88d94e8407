import test, { type ExecutionContext } from "ava";
import type { RoundLineage, VerifyJobRequest } from "#proto/shoal/v1/aggregator_service.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Model } from "#proto/shoal/v1/model.js";
import { Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import { newMeta } from "#common/domain/resources.js";
import { deriveSeed } from "#common/domain/seed.js";
import { toHuggingFaceConfig } from "#common/graph/config.js";
import { startTrained, variantOf } from "#common/graph/training.js";
import { toBytes } from "#common/tensor/flat.js";
import { AggregatorApi } from "#services/aggregator/aggregator-api.js";
import { config, forge, play, SEED, whole } from "./history.js";
import { draw, freeze, JOB, openRound, reconcile, resultOf, type World } from "./world.js";

const apiOf = (world: World): AggregatorApi => new AggregatorApi(world.ports);

async function walk(world: World, request: Partial<VerifyJobRequest> = {}): Promise<RoundLineage[]> {
  const asked = { job: JOB, firstRound: 0, lastRound: 0, replay: true, ...request };
  const answered = await apiOf(world).verifyJob(asked, new AbortController().signal);
  if (!answered.ok) throw new Error(JSON.stringify(answered.refusal));
  const rounds: RoundLineage[] = [];
  for await (const { part } of answered.value) if (part?.$case === "round") rounds.push(part.value);
  return rounds;
}

/** "<round> <check>" of every check with this outcome. */
const having = (rounds: readonly RoundLineage[], outcome: string): string[] =>
  rounds.flatMap(({ number, checks }) =>
    checks.filter((check) => check.outcome === outcome).map(({ name }) => `${number} ${name}`),
  );

async function replay(world: World, number: number) {
  const answered = await apiOf(world).replayRound({ job: JOB, number }, new AbortController().signal);
  if (!answered.ok) return answered.refusal;
  for await (const { part } of answered.value) if (part?.$case === "outcome") return part.value;
  throw new Error("no outcome");
}

test("an honest job is verified from its seed to its model; what left the log is told, not blamed", async (t) => {
  const world = await play();
  const rounds = await walk(world);
  t.deepEqual(having(rounds, "Broken"), []);
  t.deepEqual(having(rounds, "Unverifiable"), ["1 commits", "2 commits"]);
  t.deepEqual(
    rounds.map(({ number }) => number),
    [1, 2, 3, 4, 0],
  );
  const names = ["start", "strategy", "foldSet", "verdicts", "sums", "commits", "weights", "outerState", "replay"];
  t.deepEqual(
    rounds[2]?.checks.map(({ name }) => name),
    names,
  );
  t.deepEqual(having(rounds.slice(4), "Verified"), ["0 origin", "0 model"]);
  t.deepEqual(having(await walk(world, { firstRound: 3, lastRound: 3, replay: false }), "Verified").length, 9);
});

test("a replay prints the published digest, and refuses a round that left the log", async (t) => {
  const world = await play();
  const result = await resultOf(world, 4);
  t.like(await replay(world, 4), {
    equal: true,
    damage: "",
    weightsDigest: result?.weights?.digest ?? "",
    outerDigest: result?.outerState?.digest ?? "",
    updates: 3,
    readBytes: 3 * 4 * whole.length,
  });
  t.like(await replay(world, 2), { code: "FAILED_PRECONDITION" });
  t.like(await replay(world, 9), { code: "NOT_FOUND" });
  t.like(await replay(world, 0), { code: "INVALID_ARGUMENT" });
  await openRound(world, 5, { start: result ?? ({} as RoundResult) });
  t.like(await replay(world, 5), { code: "FAILED_PRECONDITION" });
});

test("an answer to a caller who has gone is not computed on", async (t) => {
  const world = await play();
  const gone = new AbortController();
  const answered = await apiOf(world).replayRound({ job: JOB, number: 4 }, gone.signal);
  gone.abort(new Error("gone"));
  await t.throwsAsync(
    async () => {
      if (answered.ok) for await (const _ of answered.value) t.fail();
    },
    { message: "gone" },
  );
});

const digestOf = (letter: string): string => `sha256:${letter.repeat(64)}`;
const editResult = (number: number, change: (result: RoundResult) => Partial<RoundResult>) => (world: World) =>
  forge(world, "RoundResult", `${JOB}-${number}`, (result) =>
    RoundResult.fromPartial({ ...result, ...change(result) }),
  );

/** What somebody may have changed, and which checks must say so. */
const FORGERIES: readonly [string, (world: World) => Promise<unknown>, readonly string[]][] = [
  [
    "a result names other weights that exist",
    async (world) => {
      const other = await world.blobs.put(toBytes(draw(whole.length, 1)));
      return editResult(3, () => ({ weights: other }))(world);
    },
    ["3 replay", "4 start"],
  ],
  [
    "a result's weights are gone",
    (world) => editResult(3, () => ({ weights: { digest: digestOf("a"), sizeBytes: 4 * whole.length } }))(world),
    ["3 weights", "3 replay", "4 start"],
  ],
  ["a result's tokens are raised", editResult(1, (result) => ({ tokens: result.tokens + 1 })), ["1 sums"]],
  ["a loss is polished", editResult(2, (result) => ({ evalLoss: (result.evalLoss ?? 0) / 2 })), ["2 sums"]],
  [
    "a folded update is left out of the result",
    editResult(1, (result) => ({ folded: result.folded.slice(1) })),
    ["1 foldSet", "1 sums"],
  ],
  [
    "a device is renamed in the fold set",
    (world) =>
      forge(world, "Round", `${JOB}-1`, (round) => {
        const foldSet = round.status?.foldSet.map((entry, i) => (i === 0 ? { ...entry, device: "eve" } : entry)) ?? [];
        return Round.fromPartial({ ...round, status: { ...round.status, foldSet } });
      }),
    ["1 foldSet"],
  ],
  [
    "a verdict is turned",
    (world) =>
      forge(world, "UpdateTally", `${JOB}-2`, (tally) =>
        UpdateTally.fromPartial({ ...tally, verdicts: tally.verdicts.map((each) => ({ ...each, accepted: false })) }),
      ),
    ["2 verdicts"],
  ],
  [
    "a job of the same name takes the rounds over",
    (world) =>
      forge(world, "Round", `${JOB}-2`, (round) =>
        Round.fromPartial({ ...round, spec: { ...round.spec, task: { ...round.spec?.task, jobUid: "another" } } }),
      ),
    ["2 strategy"],
  ],
  [
    "the strategy is changed after the fact",
    (world) =>
      forge(world, "TrainingJob", JOB, (job) =>
        TrainingJob.fromPartial({
          ...job,
          spec: { ...job.spec, strategy: { ...job.spec?.strategy, outerLearningRate: 0.6 } },
        }),
      ),
    ["3 replay", "4 replay"],
  ],
  [
    "the seed is changed after the fact",
    (world) =>
      forge(world, "TrainingJob", JOB, (job) => TrainingJob.fromPartial({ ...job, spec: { ...job.spec, seed: 8 } })),
    ["0 origin"],
  ],
  [
    "the published model is another one",
    (world) =>
      forge(world, "Model", JOB, (model) =>
        Model.fromPartial({ ...model, weights: { digest: digestOf("b"), sizeBytes: 4 } }),
      ),
    ["0 model"],
  ],
  [
    "a commit's manifest in the result is not the one in the log",
    async (world) => {
      const change = (verdict: RoundResult["folded"][number]) => ({
        ...verdict,
        manifest: verdict.manifest && { ...verdict.manifest, fetchMs: 1 },
      });
      await editResult(4, ({ folded }) => ({ folded: folded.map(change) }))(world);
      await forge(world, "UpdateTally", `${JOB}-4`, (tally) =>
        UpdateTally.fromPartial({ ...tally, verdicts: tally.verdicts.map(change) }),
      );
    },
    ["4 commits"],
  ],
  [
    "a folded update is of another job that had this name",
    async (world) => {
      const change = (verdict: RoundResult["folded"][number]) => ({
        ...verdict,
        manifest: verdict.manifest && { ...verdict.manifest, jobUid: "another" },
      });
      await editResult(4, ({ folded }) => ({ folded: folded.map(change) }))(world);
      await forge(world, "UpdateTally", `${JOB}-4`, (tally) =>
        UpdateTally.fromPartial({ ...tally, verdicts: tally.verdicts.map(change) }),
      );
    },
    ["4 verdicts", "4 commits"],
  ],
  ["a result is of an earlier round of its name", editResult(2, () => ({ roundUid: "older" })), ["2 start"]],
  [
    "a tally is of an earlier round of its name",
    (world) => forge(world, "UpdateTally", `${JOB}-2`, (tally) => ({ ...tally, roundUid: "older" })),
    ["2 verdicts"],
  ],
  ["the last result is of an earlier round", editResult(4, () => ({ roundUid: "older" })), ["4 start", "0 model"]],
  ["a result is gone", (world) => world.store.delete("RoundResult", `${JOB}-2`), ["2 start"]],
  ["a round is gone", (world) => world.store.delete("Round", `${JOB}-3`), ["3 start"]],
];

for (const [what, change, expected] of FORGERIES) {
  test(`the walk finds it when ${what}`, async (t) => {
    const world = await play();
    await change(world);
    t.deepEqual(having(await walk(world), "Broken"), expected);
  });
}

/** A world whose blobs and chunks can be swapped under their names, as on a damaged disk. */
async function damaged(t: ExecutionContext, part: "blob" | "chunk"): Promise<World> {
  const world = await play();
  const { digest = "" } = (await resultOf(world, 3))?.weights ?? {};
  const seq = (await world.log.commits(`${JOB}-3`))[0]?.manifest?.chunkSeqs[0] ?? 0;
  t.true(seq > 0);
  const flip = (bytes: Uint8Array): Uint8Array => bytes.map((byte, i) => (i === 1 ? byte ^ 1 : byte));
  const blobs = Object.assign(Object.create(world.blobs) as World["blobs"], {
    getRange: async (of: string, offset: number, length: number) => {
      const bytes = await world.blobs.getRange(of, offset, length);
      return bytes && part === "blob" && of === digest ? flip(bytes) : bytes;
    },
  });
  const log = Object.assign(Object.create(world.log) as World["log"], {
    readChunk: async (of: number) => {
      const chunk = await world.log.readChunk(of);
      return chunk && part === "chunk" && of === seq ? { ...chunk, bytes: flip(chunk.bytes) } : chunk;
    },
  });
  return { ...world, ports: { ...world.ports, blobs, log } };
}

test("bytes that changed on disk are found in blobs and in the log", async (t) => {
  t.deepEqual(having(await walk(await damaged(t, "blob")), "Broken"), ["3 weights"]);
  const chunk = await damaged(t, "chunk");
  t.deepEqual(having(await walk(chunk), "Broken"), ["3 commits"]);
  t.like(await replay(chunk, 3), { equal: false, weightsDigest: "" });
  const outcome = await replay(chunk, 3);
  t.true("damage" in outcome && outcome.damage.includes("is not what it was"));
});

test("a round that the log gave up before its time is told, and no fault is claimed", async (t) => {
  const world = await play();
  await world.log.purgeRound(`${JOB}-4`);
  const rounds = await walk(world);
  t.deepEqual(having(rounds, "Broken"), []);
  t.deepEqual(having(rounds, "Unverifiable"), ["1 commits", "2 commits", "4 commits"]);
  t.regex(rounds[3]?.checks.find(({ name }) => name === "commits")?.message ?? "", /want of space/);
});

test("of a retained round a commit or chunk alone that is gone is a fault", async (t) => {
  const world = await play();
  const { log } = world;
  const without = (change: Partial<World["log"]>): World => {
    const holed = Object.assign(Object.create(log) as World["log"], change);
    return { ...world, ports: { ...world.ports, log: holed } };
  };
  const firsts = await Promise.all([3, 4].map(async (number) => (await log.commits(`${JOB}-${number}`))[0]?.seq));
  const fewer = without({
    readCommit: (at) => (firsts.includes(at) ? Promise.resolve(undefined) : log.readCommit(at)),
  });
  t.deepEqual(having(await walk(fewer), "Broken"), ["3 commits", "4 commits"]);
  const seq = (await log.commits(`${JOB}-4`))[1]?.manifest?.chunkSeqs[0] ?? 0;
  const holed = without({
    readChunk: (at) => (at === seq ? Promise.resolve(undefined) : log.readChunk(at)),
  });
  t.deepEqual(having(await walk(holed), "Broken"), ["4 commits"]);
});

test("rounds under way and of evaluation alone are told as what they are", async (t) => {
  const world = await play();
  const last = (await resultOf(world, 4)) as RoundResult;
  await openRound(world, 5, { evaluationOnly: true, start: last });
  await forge(world, "TrainingJob", JOB, (job) =>
    TrainingJob.fromPartial({ ...job, status: { ...job.status, currentRound: 5 } }),
  );
  t.deepEqual(having(await walk(world, { firstRound: 5 }), "Unverifiable"), ["5 start"]);
  await freeze(world, [], 5);
  await reconcile(world, 5);
  t.deepEqual(having(await walk(world, { firstRound: 5 }), "Broken"), []);
  await editResult(5, () => ({ weights: { digest: digestOf("c"), sizeBytes: 4 * whole.length } }))(world);
  t.deepEqual(having(await walk(world, { firstRound: 5 }), "Broken"), ["5 weights", "5 weights", "5 replay"]);
});

test("adapters are drawn again beside their base; a base with other weights by now cannot be held against", async (t) => {
  const training = {
    mode: "lora",
    lora: { rank: 2, alpha: 4, targets: ["all-linear"], rankStabilized: false },
    base: "float32",
    trained: [],
    recompute: "auto",
  };
  const start = startTrained(config, variantOf(training), whole, deriveSeed(SEED, "adapters"));
  const world = await play({ base: start });
  const weights = await world.blobs.put(toBytes(whole));
  await world.store.create("Model", Model.fromPartial({ metadata: newMeta("base"), family: "gpt2", weights }));
  await forge(world, "Model", JOB, (model) =>
    Model.fromPartial({ ...model, family: "gpt2", config: toHuggingFaceConfig(config) }),
  );
  const setJob = (seed: number): Promise<void> =>
    forge(world, "TrainingJob", JOB, (job) =>
      TrainingJob.fromPartial({
        ...job,
        spec: { ...job.spec, seed, model: { base: "base" }, training },
        status: { ...job.status, baseWeights: weights },
      }),
    );
  await setJob(SEED);
  t.deepEqual(having((await walk(world)).slice(4), "Verified"), ["0 origin", "0 model"]);
  await setJob(SEED + 1);
  t.deepEqual(having(await walk(world), "Broken"), ["0 origin"]);
  await forge(world, "Model", "base", (model) =>
    Model.fromPartial({ ...model, weights: { digest: digestOf("d"), sizeBytes: 4 } }),
  );
  t.deepEqual(having((await walk(world)).slice(4), "Unverifiable"), ["0 origin"]);
});

test("requests that cannot be are refused by field", async (t) => {
  const api = apiOf(await play());
  const ask = { job: JOB, firstRound: 0, lastRound: 0, replay: false };
  const { signal } = new AbortController();
  t.like(await api.verifyJob({ ...ask, job: "no such" }, signal), { refusal: { code: "INVALID_ARGUMENT" } });
  t.like(await api.verifyJob({ ...ask, firstRound: -1 }, signal), {
    refusal: { violations: [{ field: "first_round" }] },
  });
  t.like(await api.verifyJob({ ...ask, lastRound: -1 }, signal), {
    refusal: { violations: [{ field: "last_round" }] },
  });
  t.like(await api.verifyJob({ ...ask, lastRound: 9 }, signal), { refusal: { code: "OUT_OF_RANGE" } });
  t.like(await api.verifyJob({ ...ask, job: "other" }, signal), { refusal: { code: "NOT_FOUND" } });
});
