import test from "ava";
import fc from "fast-check";
import { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { findCondition, setCondition } from "#common/domain/condition.js";
import { advance, newRoundStatus, type RoundFacts, standingOf } from "#common/domain/round.js";
import { NOTHING_CARRIED } from "#common/domain/staleness.js";
import { deriveSeed } from "#common/domain/seed.js";
import { suggest } from "#common/domain/suggestion.js";

const NAMES = ["ann", "bob", "cyd"];

function training(over: Partial<Round["status"]> = {}): Round {
  const assignments = NAMES.map((device) => ({ device, localSteps: 5 }));
  const status = { ...newRoundStatus(), assignments, phase: "Training", deadlineAtMs: 1000, target: 3, quorum: 2 };
  return Round.fromPartial({ metadata: { name: "j-1", generation: 1 }, status: { ...status, ...over } });
}

/** "+ann" is an accepted commit, "-bob" a refused one, in log order. */
function tallyOf(verdicts: readonly string[]): UpdateTally {
  return UpdateTally.fromPartial({
    verdicts: verdicts.map((text, i) => ({
      commitSeq: 10 + i,
      accepted: text.startsWith("+"),
      reason: text.startsWith("+") ? "" : "NotFinite",
      message: "value 3 is NaN",
      manifest: { device: text.slice(1) },
    })),
    lastSeq: 9 + verdicts.length,
  });
}

interface World {
  verdicts?: string[];
  unjudged?: number;
  lost?: string[];
  silent?: string[];
  hasResult?: boolean;
  jobStopped?: boolean;
  nowMs?: number;
}

function factsOf(world: World): RoundFacts {
  return {
    tally: world.verdicts === undefined ? undefined : tallyOf(world.verdicts),
    unjudged: world.unjudged ?? 0,
    lost: new Map((world.lost ?? []).map((device) => [device, ["failed: disk is full"]])),
    silent: new Set(world.silent ?? []),
    hasResult: world.hasResult ?? false,
    jobStopped: world.jobStopped ?? false,
    carried: NOTHING_CARRIED,
    rounds: 1,
    completedRounds: 0,
  };
}

/** One line per look: what the world says, and what follows. */
function trace(round: Round, worlds: readonly World[]): string[] {
  let now = round;
  return worlds.map((world) => {
    const nowMs = world.nowMs ?? 0;
    const next = advance(now, factsOf(world), nowMs);
    if (!next.changed) return `wait until ${next.wakeAtMs ?? "woken"}`;
    now = { ...now, status: next.status };
    const { phase, attempt, foldSet, withdrawn, conditions } = next.status;
    const last = conditions.at(-1);
    const parts = [
      phase,
      attempt > 0 ? `attempt ${attempt}` : "",
      foldSet.length > 0 ? `fold ${foldSet.map(({ device, commitSeq }) => `${device}@${commitSeq}`).join(" ")}` : "",
      withdrawn.length > 0 ? `without ${withdrawn.map(({ device }) => device).join(" ")}` : "",
      last === undefined ? "" : `${last.type}=${last.status} ${last.reason}`,
    ];
    return parts.filter((part) => part !== "").join("; ");
  });
}

const traces: [string, Round, World[], string[]][] = [
  [
    "everybody commits",
    training(),
    [
      {},
      { verdicts: ["+bob"] },
      { verdicts: ["+bob", "+ann"] },
      { verdicts: ["+bob", "+ann", "+cyd"] },
      {},
      { hasResult: true },
      { hasResult: true },
    ],
    [
      "wait until 1000",
      "wait until 1000",
      "wait until 1000",
      "Aggregating; fold bob@10 ann@11 cyd@12; Quorum=True Reached",
      "wait until woken",
      "Completed; fold bob@10 ann@11 cyd@12; Completed=True Folded",
      "wait until woken",
    ],
  ],
  [
    "over-committed: the target ends it",
    training({ target: 2 }),
    [{ verdicts: ["+cyd", "+ann"] }],
    ["Aggregating; fold cyd@10 ann@11; without bob; Quorum=True Reached"],
  ],
  [
    "a duplicate counts once, a refused commit not at all",
    training(),
    [{ verdicts: ["+ann", "-ann", "-bob", "+cyd"] }],
    ["Aggregating; fold ann@10 cyd@13; without bob; Quorum=True Reached"],
  ],
  [
    "the deadline with a quorum",
    training(),
    [
      { verdicts: ["+ann", "+bob"], nowMs: 999 },
      { verdicts: ["+ann", "+bob"], nowMs: 1000 },
    ],
    ["wait until 1000", "Aggregating; fold ann@10 bob@11; without cyd; Quorum=True Reached"],
  ],
  [
    "planned by a clock that ran 18 minutes ahead: the time given counts from now, once",
    training({ plannedAtMs: 1_080_000, deadlineAtMs: 1_085_000 }),
    [{ nowMs: 1_069_999 }, { nowMs: 1_070_000 }, { nowMs: 1_074_998 }],
    ["Training", "wait until 1074999", "wait until 1074999"],
  ],
  [
    "planned by a clock that differs as clocks do",
    training({ plannedAtMs: 1_080_000, deadlineAtMs: 1_085_000 }),
    [{ nowMs: 1_070_000 }, { nowMs: 1_085_000 }],
    ["wait until 1085000", "Planning; attempt 1; Planned=False DeadlinePassed"],
  ],
  [
    "what is durable but unjudged is waited for, whatever the time",
    training(),
    [
      { verdicts: ["+ann", "+bob"], unjudged: 1, nowMs: 5000 },
      { verdicts: ["+ann", "+bob", "+cyd"], nowMs: 6000 },
    ],
    ["wait until 7000", "Aggregating; fold ann@10 bob@11 cyd@12; Quorum=True Reached"],
  ],
  [
    "the deadline without a quorum: those alive go on, the silent are replaced",
    training(),
    [{ verdicts: ["+ann"], silent: ["bob"], nowMs: 1000 }],
    ["Planning; attempt 1; without bob; Planned=False DeadlinePassed"],
  ],
  [
    "too few are left: planned again at once",
    training(),
    [{ lost: ["bob"] }, { lost: ["bob", "ann"] }],
    ["Training; without bob", "Planning; attempt 1; without ann bob; Planned=False DevicesLost"],
  ],
  [
    "all are accounted for, with a quorum",
    training(),
    [{ verdicts: ["+ann", "+bob"], lost: ["cyd"] }],
    ["Aggregating; fold ann@10 bob@11; without cyd; Quorum=True Reached"],
  ],
  [
    "a withdrawn device that commits after all counts",
    training(),
    [{ lost: ["bob"] }, { lost: ["bob"], verdicts: ["+bob", "+ann", "+cyd"] }],
    ["Training; without bob", "Aggregating; fold bob@10 ann@11 cyd@12; Quorum=True Reached"],
  ],
  [
    "a commit that arrives while replacements are sought may be the last one needed",
    training(),
    [
      { verdicts: ["+ann"], silent: ["bob", "cyd"], nowMs: 1000 },
      { verdicts: ["+ann"], unjudged: 1, nowMs: 1001 },
      { verdicts: ["+ann", "+bob"], nowMs: 1002 },
    ],
    [
      "Planning; attempt 1; without bob cyd; Planned=False DeadlinePassed",
      "wait until 3001",
      "Aggregating; attempt 1; fold ann@10 bob@11; without cyd; Quorum=True Reached",
    ],
  ],
  [
    "cancelled with a quorum: what is committed is folded",
    training(),
    [{ verdicts: ["+ann", "+bob"], jobStopped: true }, { jobStopped: true }, { jobStopped: true, hasResult: true }],
    [
      "Aggregating; fold ann@10 bob@11; without cyd; Quorum=True Reached",
      "wait until woken",
      "Completed; fold ann@10 bob@11; without cyd; Completed=True Folded",
    ],
  ],
  [
    "cancelled without one",
    training(),
    [{ verdicts: ["+ann"], jobStopped: true }],
    ["Failed; Completed=False JobStopped"],
  ],
  [
    "cancelled before it was planned",
    Round.fromPartial({ metadata: { name: "j-1" } }),
    [{}, { jobStopped: true }, { jobStopped: true }],
    ["wait until woken", "Failed; Completed=False JobStopped", "wait until woken"],
  ],
];

for (const [what, round, worlds, expected] of traces) {
  test(`advance: ${what}`, (t) => {
    t.deepEqual(trace(round, worlds), expected);
    t.deepEqual(trace(round, worlds), expected, "replaying gives the same");
  });
}

const worldArbitrary: fc.Arbitrary<World> = fc.record({
  verdicts: fc.array(fc.constantFrom("+ann", "-ann", "+bob", "-bob", "+cyd", "-cyd"), { maxLength: 6 }),
  unjudged: fc.integer({ min: 0, max: 1 }),
  lost: fc.subarray(NAMES),
  silent: fc.subarray(NAMES),
  hasResult: fc.boolean(),
  jobStopped: fc.boolean(),
  nowMs: fc.integer({ min: 0, max: 2000 }),
});
const ORDER = ["Planning", "Training", "Aggregating", "Completed", "Failed"];

test("advance is total, and folds only accepted commits of a quorum in log order", (t) => {
  const quorum = fc.integer({ min: 1, max: 3 });
  const phase = fc.constantFrom(...ORDER, "Nonsense");
  fc.assert(
    fc.property(worldArbitrary, quorum, phase, (world, least, from) => {
      const round = training({ phase: from, quorum: least });
      const next = advance(round, factsOf(world), world.nowMs ?? 0);
      if (!next.changed) return true;
      const { foldSet } = next.status;
      const seqs = foldSet.map(({ commitSeq }) => commitSeq);
      const accepted = (world.verdicts ?? []).flatMap((text, i) => (text.startsWith("+") ? [10 + i] : []));
      const folds = next.status.phase === "Aggregating";
      return (
        ORDER.includes(next.status.phase) &&
        (!folds || foldSet.length >= least) &&
        (!folds || (world.unjudged ?? 0) === 0) &&
        seqs.every((seq, i) => accepted.includes(seq) && seq > (seqs[i - 1] ?? 0)) &&
        new Set(foldSet.map(({ device }) => device)).size === foldSet.length &&
        from !== "Completed" &&
        from !== "Failed"
      );
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

test("looking twice at the same world changes nothing more within a phase", (t) => {
  fc.assert(
    fc.property(worldArbitrary, (world) => {
      const first = advance(training(), factsOf(world), world.nowMs ?? 0);
      if (!first.changed || first.status.phase !== "Training") return true;
      return !advance({ ...training(), status: first.status }, factsOf(world), world.nowMs ?? 0).changed;
    }),
  );
  t.pass();
});

test("everybody invited is accepted, outstanding or withdrawn", (t) => {
  fc.assert(
    fc.property(worldArbitrary, (world) => {
      const { accepted, outstanding, withdrawn } = standingOf(training().status ?? newRoundStatus(), factsOf(world));
      const all = [
        ...accepted.map(({ manifest }) => manifest?.device ?? ""),
        ...outstanding,
        ...withdrawn.map(({ device }) => device),
      ];
      return JSON.stringify(all.sort()) === JSON.stringify(NAMES);
    }),
  );
  t.pass();
});

test("a condition's transition time moves with its status only", (t) => {
  const seen = { type: "Planned", status: false, reason: "A", message: "a", generation: 1 };
  const first = setCondition([], seen, 5);
  const second = setCondition(first, { ...seen, reason: "B" }, 6);
  t.deepEqual(
    [findCondition(second, "Planned")?.lastTransitionAtMs, findCondition(second, "Planned")?.reason],
    [5, "B"],
  );
  t.is(setCondition(second, { ...seen, status: true }, 7)[0]?.lastTransitionAtMs, 7);
  t.is(setCondition(second, { ...seen, status: undefined, type: "Other" }, 8)[1]?.status, "Unknown");
  t.is(findCondition(second, "Absent"), undefined);
});

test("derived seeds differ by every part and stay what they are", (t) => {
  t.is(deriveSeed(1, "round", 1), deriveSeed(1, "round", 1));
  const seeds = [
    deriveSeed(1, "round", 1),
    deriveSeed(2, "round", 1),
    deriveSeed(1, "round", 2),
    deriveSeed(1, "round1"),
    deriveSeed(1, "round", "1x"),
  ];
  t.is(new Set(seeds).size, seeds.length);
  t.is(deriveSeed(1, "round", 1), GOLDEN_SEED);
});
const GOLDEN_SEED = 2319652955;

test("suggestions", (t) => {
  t.is(suggest("batch_size", ["steps", "batchSize"]), "batchSize");
  t.is(suggest("setps", ["steps", "batchSize"]), "steps");
  t.is(suggest("zzz", ["steps", "batchSize"]), undefined);
  t.is(suggest("x", []), undefined);
});

test("quorum and target count devices, not updates, and what a gateway refused is withdrawn", (t) => {
  const members = (refusals: Record<string, string>) =>
    Object.entries(refusals).map(([device, refusal]) => ({ device, refusal, message: "value 3 is NaN" }));
  const siteTally = (refusals: Record<string, string>): UpdateTally =>
    UpdateTally.fromPartial({
      verdicts: [
        { commitSeq: 10, accepted: true, manifest: { device: "gate", site: "pier", members: members(refusals) } },
      ],
      lastSeq: 10,
    });
  const all = advance(training(), { ...factsOf({}), tally: siteTally({ ann: "", bob: "", cyd: "" }) }, 0);
  t.true(all.changed && all.status.phase === "Aggregating");
  t.deepEqual(all.changed && all.status.foldSet, [{ device: "gate", commitSeq: 10, staleness: 0 }]);

  const standing = standingOf(training().status ?? newRoundStatus(), {
    ...factsOf({}),
    tally: siteTally({ ann: "", bob: "NotFinite" }),
  });
  t.is(standing.counted, 1);
  t.deepEqual(standing.outstanding, ["cyd"]);
  t.deepEqual(standing.withdrawn, [{ device: "bob", reasons: ["its update was refused (NotFinite): value 3 is NaN"] }]);
});
