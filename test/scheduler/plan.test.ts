import test from "ava";
import fc from "fast-check";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { DeviceStatus } from "#proto/shoal/v1/device.js";
import type { Round } from "#proto/shoal/v1/round.js";
import { Dataset } from "#proto/shoal/v1/model.js";
import { newRoundStatus } from "#common/domain/round.js";
import type { BufferView, Candidate, Snapshot } from "#services/scheduler/eligibility.js";
import { planRound, type RoundPlan, verifyPlan } from "#services/scheduler/plan.js";
import { learnDeadlineMs, predict, spreadOf } from "#services/scheduler/prediction.js";
import { draftRound } from "#services/scheduler/round-draft.js";
import { candidateOf, type DeviceTraits, jobOf, leaseOf, NOW, TINY_CONFIG } from "./world.js";

const GRAPH_BLOB = { digest: `sha256:${"1".repeat(64)}`, sizeBytes: 9 };
const GRAPH = { keeping: GRAPH_BLOB, recomputing: undefined };
const snapshotOf = (candidates: readonly Candidate[], over: Partial<Snapshot> = {}): Snapshot => ({
  nowMs: NOW,
  candidates,
  dataset: undefined,
  config: TINY_CONFIG,
  ...over,
});
const roundOf = (job: TrainingJob): Round =>
  draftRound(job, { family: "gpt2", tokenizer: undefined }, { number: 1, evaluationOnly: false }, undefined);
const names = (count: number): string[] => Array.from({ length: count }, (_, i) => `dev-${i}`);

const traits: fc.Arbitrary<DeviceTraits> = fc.record({
  gflops: fc.constantFrom(0, 1, 3, 10),
  tokens: fc.constantFrom(3, 17, 10_000),
  minCohort: fc.integer({ min: 0, max: 8 }),
  memoryBytes: fc.constantFrom(1e6, 4e9),
  cordoned: fc.boolean(),
});
const fleet = fc.array(
  fc.oneof({ weight: 3, arbitrary: fc.constant<DeviceTraits>({}) }, { weight: 2, arbitrary: traits }),
  { maxLength: 9 },
);
const cohort = fc
  .record({
    min: fc.integer({ min: 1, max: 6 }),
    target: fc.integer({ min: 0, max: 6 }),
    overCommit: fc.constantFrom(1, 1.3, 3),
  })
  .map(({ min, target, overCommit }) => ({ min: target > 0 ? Math.min(min, target) : min, target, overCommit }));

/** Whether a device may take part for reasons of its own, said once more in the plainest words. */
const isFit = ({ gflops = 10, tokens = 10_000, memoryBytes = 4e9, cordoned = false }: DeviceTraits): boolean =>
  gflops > 0 && tokens >= 17 && memoryBytes > 1e9 && !cordoned;

test("a round carries the uid of its job, which tells it from one of an earlier job of the name", (t) => {
  const job = jobOf("again", {});
  const metadata = job.metadata && { ...job.metadata, uid: "uid-2" };
  t.is(roundOf({ ...job, metadata }).spec?.task?.jobUid, "uid-2");
});

test("in an asynchronous job idle devices are drawn up to the number at work at once", (t) => {
  const spec = { strategy: { name: "fedbuff", bufferSize: 2 }, cohort: { min: 2, target: 4 } };
  const job = jobOf("buffered", spec);
  const candidates = names(8).map((name) =>
    name === "dev-7" ? { ...candidateOf(name, { minCohort: 3 }), busyWith: "buffered-1" } : candidateOf(name),
  );
  const view = (over: Partial<BufferView>): BufferView => ({
    working: 0,
    trailing: new Set(["dev-7"]),
    waiting: new Set(),
    quorum: 0,
    ...over,
  });
  const planWith = (over: Partial<BufferView>) =>
    planRound(snapshotOf(candidates, { buffer: view(over) }), job, roundOf(job), 1, GRAPH);
  const first = planWith({ waiting: new Set(["dev-0", "gone"]) });
  if (!first.ok) return t.fail(first.waitFor);
  t.is(first.drawn.length, 3, "one is at work from earlier weights");
  t.false(first.drawn.includes("dev-7"));
  t.deepEqual(
    first.assignments.map(({ device }) => device),
    [...first.drawn].sort(),
  );
  t.is(first.quorum, 3, "what the one at work was promised");
  t.is(first.target, 3, "the buffer is never smaller than the quorum");
  t.is(first.cohortSize, new Set([...first.drawn, "dev-7", "dev-0", "gone"]).size);
  const many = planWith({ working: 2, waiting: new Set(["dev-0", "gone"]), quorum: 4 });
  t.is(many.ok && many.drawn.length, 1);
  const full = planWith({ working: 5, waiting: new Set(names(6)) });
  t.deepEqual(full.ok && full.drawn, [], "nobody need be drawn where enough is under way");
  return undefined;
});

test("plans obey their bounds, whatever the fleet", (t) => {
  let planned = 0;
  fc.assert(
    fc.property(
      fleet,
      cohort,
      fc.nat(),
      fc.constantFrom("fixed", "proportional"),
      (devices, wanted, seed, stepPolicy) => {
        const job = jobOf("bounds", { cohort: wanted, local: { steps: 10, minSteps: 2, stepPolicy, batchSize: 2 } });
        const candidates = devices.map((one, i) => candidateOf(`dev-${i}`, one));
        const plan = planRound(snapshotOf(candidates), job, roundOf(job), seed, GRAPH);
        const excluded = new Set(plan.exclusions.map(({ device }) => device));
        const reasonsGiven = plan.exclusions.every(
          ({ reasons }) => reasons.length > 0 && reasons.every((reason) => reason !== ""),
        );
        if (!reasonsGiven) return false;
        if (!plan.ok) return plan.waitFor.includes("needed");
        planned++;
        const traitsOf = (device: string): DeviceTraits => devices[Number(device.slice(4))] ?? {};
        const invited = plan.assignments.length;
        const limit = wanted.target === 0 ? Infinity : Math.ceil(wanted.target * wanted.overCommit);
        const fastest = Math.max(...plan.assignments.map(({ device }) => traitsOf(device).gflops ?? 10));
        return (
          invited + excluded.size === devices.length &&
          invited <= limit &&
          plan.quorum >= wanted.min &&
          plan.quorum <= plan.target &&
          plan.target <= invited &&
          plan.deadlineMs >= 60_000 &&
          plan.assignments.every(
            ({ device, localSteps }) =>
              !excluded.has(device) &&
              isFit(traitsOf(device)) &&
              (traitsOf(device).minCohort ?? 0) <= plan.quorum &&
              localSteps >= 2 &&
              localSteps <= 10 &&
              (stepPolicy === "proportional" || localSteps === 10) &&
              ((traitsOf(device).gflops ?? 10) < fastest || localSteps === 10),
          )
        );
      },
    ),
    { numRuns: 300 },
  );
  t.true(planned > 50, `only ${planned} of 300 fleets gave a plan`);
});

test("a plan follows from the seed and not from the order of the snapshot", (t) => {
  const job = jobOf("order", { cohort: { min: 2, target: 4, overCommit: 1.3 } });
  const shuffled = fleet.chain((devices) => {
    const candidates = devices.map((one, i) => candidateOf(`dev-${i}`, one));
    return fc.tuple(fc.constant(candidates), fc.shuffledSubarray(candidates, { minLength: candidates.length }));
  });
  fc.assert(
    fc.property(shuffled, fc.nat(), ([one, other], seed) => {
      const plan = (candidates: readonly Candidate[]): string =>
        JSON.stringify(planRound(snapshotOf(candidates), job, roundOf(job), seed, GRAPH));
      return plan(one) === plan(other) && plan(one) === plan(one);
    }),
  );
  t.pass();
});

test("the seed draws: every device is in some cohort, and every device has its own seed", (t) => {
  const job = jobOf("drawn", { cohort: { min: 1, target: 2 } });
  const candidates = names(6).map((name) => candidateOf(name));
  const seen = new Set<string>();
  for (let seed = 0; seed < 40; seed++) {
    const plan = planRound(snapshotOf(candidates), job, roundOf(job), seed, GRAPH);
    if (!plan.ok) return t.fail();
    t.is(plan.assignments.length, 2);
    t.not(plan.assignments[0]?.seed, plan.assignments[1]?.seed);
    for (const { device } of plan.assignments) seen.add(device);
  }
  t.is(seen.size, 6);
});

const cases: [string, (one: Candidate) => Candidate, RegExp][] = [
  ["no lease", (one) => ({ ...one, lease: undefined }), /never sent a heartbeat/],
  ["expired lease", (one) => ({ ...one, lease: leaseOf("x", NOW - 60_000) }), /silent since 2023-11-14T22:12:20/],
  [
    "cordoned",
    (one) => ({ ...one, device: { ...one.device, spec: candidateOf("x", { cordoned: true }).device.spec } }),
    /cordoned.*uncordon/,
  ],
  ["busy", (one) => ({ ...one, busyWith: "other-3" }), /works for round other-3/],
  ["refused update", (one) => ({ ...one, refusedUpdate: "its update was refused (NotFinite): NaN" }), /NotFinite/],
  ["label", (one) => one, /label site is missing; the job selects "north"/],
];
for (const [what, change, reason] of cases) {
  test(`left out: ${what}`, (t) => {
    const selector = what === "label" ? { site: "north" } : {};
    const job = jobOf("left-out", { cohort: { selector } });
    const plan = planRound(snapshotOf([change(candidateOf("dev-0"))]), job, roundOf(job), 1, GRAPH);
    if (plan.ok) return t.fail("was invited");
    t.regex(plan.exclusions[0]?.reasons.join("|") ?? "", reason);
    t.regex(plan.waitFor, /0 devices can take part, 1 is needed/);
  });
}

test("left out: what it says of data, machine, policy and this round", (t) => {
  const job = jobOf("facts", { data: { dataset: "letters" } });
  const plain = candidateOf("dev-0", { gflops: 0 });
  const { status } = plain.device;
  if (status === undefined) return t.fail();
  const device = {
    ...plain.device,
    spec: { cordoned: false, draining: true, publicKey: "", joinTokenId: "" },
    status: {
      ...status,
      datasets: [{ name: "letters", documents: 0, sizeBytes: 0, tokens: 0, problem: "notes.jsonl is truncated" }],
      policy: { purposes: ["care"], modelFamilies: [], maxRoundsPerDay: 0, minCohort: 0, startMinute: 0, endMinute: 0 },
      assignments: [{ round: "facts-1", phase: "Failed", step: 0, steps: 0, loss: 0, reasons: ["disk is full"] }],
    },
  };
  const plan = planRound(snapshotOf([{ ...plain, device }]), job, roundOf(job), 1, GRAPH);
  t.deepEqual(plan.exclusions[0]?.reasons, [
    "is being drained by an operator; uncordon it to use it again",
    'dataset "letters" cannot be used: notes.jsonl is truncated',
    "has not been calibrated yet; it is once its agent has started",
    "failed this round: disk is full",
    'policy: purpose "research" is not allowed; allowed are care',
  ]);
});

test("smallest cohorts are asked until nobody more falls out", (t) => {
  const job = jobOf("cohorts");
  // dev-0 wants 4 and there are 3; without it dev-1, which wants 3, has 2; dev-2 wants 1.
  const candidates = [4, 3, 1].map((minCohort, i) => candidateOf(`dev-${i}`, { minCohort }));
  const plan = planRound(snapshotOf(candidates), job, roundOf(job), 1, GRAPH);
  t.deepEqual(plan.ok && plan.assignments.map(({ device }) => device), ["dev-2"]);
  t.deepEqual(
    plan.exclusions.map(({ device }) => device),
    ["dev-0", "dev-1"],
  );
  t.regex(plan.exclusions[1]?.reasons[0] ?? "", /cohort of 2 is too small/);
  const passport = Dataset.fromPartial({ spec: { minCohort: 2 } });
  t.false(planRound(snapshotOf(candidates, { dataset: passport }), job, roundOf(job), 1, GRAPH).ok);
});

test("a later attempt keeps who is at work or has committed and draws replacements only", (t) => {
  const job = jobOf("again", { cohort: { min: 2, target: 3 } });
  const candidates = names(5).map((name) => candidateOf(name));
  const round = roundOf(job);
  const first = planRound(snapshotOf(candidates), job, round, 7, GRAPH);
  if (!first.ok) return t.fail();
  const [lost, ...stay] = first.assignments.map(({ device }) => device);
  const status = {
    ...newRoundStatus(),
    attempt: 1,
    assignments: first.assignments,
    withdrawn: [{ device: lost ?? "", reasons: ["gone"] }],
  };
  const remaining = candidates.filter((one) => one.device.metadata?.name !== lost);
  const again = planRound(snapshotOf(remaining), job, { ...round, status }, 7, GRAPH);
  if (!again.ok) return t.fail();
  t.is(again.assignments.length, 3);
  t.is(again.drawn.length, 1);
  for (const device of stay) {
    t.deepEqual(
      again.assignments.find((one) => one.device === device),
      first.assignments.find((one) => one.device === device),
    );
  }
  t.is(again.deadlineMs, 2 * first.deadlineMs);
});

test("a later attempt keeps the smallest cohort promised to a device that was given up", (t) => {
  const job = jobOf("promised", { cohort: { min: 2 } });
  const shy = candidateOf("dev-0", { minCohort: 8 });
  const candidates = [
    shy,
    ...names(9)
      .slice(1)
      .map((name) => candidateOf(name)),
  ];
  const round = roundOf(job);
  const first = planRound(snapshotOf(candidates), job, round, 7, GRAPH);
  if (!first.ok) return t.fail();
  t.is(first.quorum, 8);
  const status = {
    ...newRoundStatus(),
    attempt: 1,
    quorum: first.quorum,
    assignments: first.assignments,
    withdrawn: [{ device: "dev-0", reasons: ["gone"] }],
  };
  const silent = { ...shy, lease: leaseOf("dev-0", NOW - 60_000) };
  const again = (others: readonly Candidate[]): ReturnType<typeof planRound> =>
    planRound(snapshotOf([silent, ...others]), job, { ...round, status }, 7, GRAPH);
  const replanned = again(candidates.slice(1));
  t.is(replanned.ok && replanned.quorum, 8);
  const gone = candidates.slice(4).map(({ device }) => ({ device: device.metadata?.name ?? "", reasons: ["gone"] }));
  const few = { ...round, status: { ...status, withdrawn: [...status.withdrawn, ...gone] } };
  const tooFew = planRound(snapshotOf([silent, ...candidates.slice(1, 4)]), job, few, 7, GRAPH);
  t.regex(tooFew.ok ? "planned" : tooFew.waitFor, /8 are needed/);
});

test("a device that says absurd things of itself is left out", (t) => {
  const job = jobOf("absurd", { cohort: { min: 1 } });
  const one = candidateOf("dev-0");
  const status = DeviceStatus.fromPartial({
    ...one.device.status,
    conditions: [{ type: "Ready", status: "False", reason: "AbsurdFacts", message: "min_cohort -1" }],
  });
  const plan = planRound(
    snapshotOf([{ ...one, device: { ...one.device, status } }, candidateOf("dev-1")]),
    job,
    roundOf(job),
    1,
    GRAPH,
  );
  t.deepEqual(plan.ok && plan.assignments.map(({ device }) => device), ["dev-1"]);
  t.regex(plan.exclusions[0]?.reasons.join() ?? "", /cannot be: min_cohort -1/);
});

test("a stale plan is refused with the reason, a fresh one is not", (t) => {
  const job = jobOf("stale");
  const candidates = names(3).map((name) => candidateOf(name));
  const round = roundOf(job);
  const plan = planRound(snapshotOf(candidates), job, round, 1, GRAPH) as RoundPlan;
  t.deepEqual(verifyPlan(plan, snapshotOf([...candidates, candidateOf("late")]), job, round), { ok: true });
  const changed = [candidateOf("dev-0", { cordoned: true }), ...candidates.slice(2)];
  const verdict = verifyPlan(plan, snapshotOf(changed), job, round);
  t.deepEqual(verdict.ok ? [] : verdict.stale.map(({ device }) => device), ["dev-0", "dev-1"]);
});

test("deadlines: given, or learned from measured steps, and doubled by attempts", (t) => {
  const given = jobOf("given", { roundDeadlineMs: 1234 });
  const plan = planRound(snapshotOf([candidateOf("dev-0")]), given, roundOf(given), 1, GRAPH);
  t.is(plan.ok && plan.deadlineMs, 1234);
  t.deepEqual(spreadOf([1, 2, 3, 4, 100]), { median: 3, mad: 1 });
  t.deepEqual(spreadOf([1, 3]), { median: 2, mad: 1 });
  const measured = { ...candidateOf("dev-0"), msPerStep: [1000, 2000, 3000, 4000, 100_000] };
  const { predictedMs, boundMs } = predict(measured, snapshotOf([measured]), given, {
    localSteps: 10,
    evaluate: false,
    recompute: false,
  });
  t.is(predictedMs, 5_000 + 10 * 3000);
  t.is(boundMs, 5_000 + 10 * (3000 + 3 * 1000));
  t.is(learnDeadlineMs([100_000, 900_000, 200_000], 2, 0), 400_000);
  t.is(learnDeadlineMs([1], 1, 0), 60_000);
  t.is(learnDeadlineMs([1], 1, 2), 240_000);
  t.is(learnDeadlineMs([], 0, 60), 24 * 3_600_000);
});

test("a slow link and an evaluation make a round longer", (t) => {
  const job = jobOf("slow");
  const quick = candidateOf("dev-0");
  const status = quick.device.status;
  if (status?.facts === undefined) return t.fail();
  const facts = { ...status.facts, upBytesPerSecond: 100, downBytesPerSecond: 100 };
  const slow = { ...quick, device: { ...quick.device, status: { ...status, facts } } };
  const work = { localSteps: 10, evaluate: false, recompute: false };
  const at = (one: Candidate, evaluate: boolean): number =>
    predict(one, snapshotOf([one]), job, { ...work, evaluate }).predictedMs;
  t.true(at(slow, false) > at(quick, false) + 4 * 3000 * 10);
  t.true(at(quick, true) > at(quick, false));
});
