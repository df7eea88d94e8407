import test from "ava";
import fc from "fast-check";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { dispensableRounds, needOf, planPurges, pressureOf, type RoundNeed } from "#services/aggregator/retention.js";

const open: RoundNeed = {
  closed: false,
  age: 0,
  plannedAtMs: 0,
  dueChunks: 3,
  judgedSeq: 50,
  accepted: new Map([["ann", new Set([4, 5, 6, 7])]]),
  awaited: new Set(["cid"]),
};
const closed: RoundNeed = { ...open, closed: true, awaited: new Set() };
const part = (device: string, chunks = 3, commits = 1, round = "job-1") => ({ device, round, chunks, commits });
const plan = (need: RoundNeed | undefined, parts = [part("ann"), part("bob")], retainRounds = 3) =>
  planPurges(parts, 99, new Map(need === undefined ? [] : [["job-1", need]]), retainRounds);

test("a round that does not exist, or that retention leaves behind, goes as a whole, once", (t) => {
  t.deepEqual(plan(undefined), [{ why: "NoRound", round: "job-1", upToSeq: 99 }]);
  t.deepEqual(plan({ ...closed, age: 4 }), [{ why: "Retired", round: "job-1", upToSeq: 99 }]);
  t.deepEqual(plan({ ...open, age: 4 }), [], "an open round stays, however old");
  t.deepEqual(plan({ ...closed, age: 3 }, [part("ann")]), []);
  t.deepEqual(plan({ ...closed, age: 400 }, [part("ann")], 0), [], "0 keeps all");
});

test("of a closed round the chunks go that no accepted update names", (t) => {
  t.deepEqual(plan(closed), [{ why: "NotFolded", round: "job-1", device: "bob", part: "chunk", upToSeq: 99 }]);
  t.deepEqual(plan(closed, [part("bob", 0)]), []);
});

test("an open round loses nothing of a device that sends what an honest one may", (t) => {
  t.deepEqual(plan(open), []);
  t.deepEqual(plan(open, [part("bob", 4 * 3 + 64, 64)]), []);
  t.deepEqual(plan({ ...open, dueChunks: Infinity }, [part("bob", 1e6)]), []);
});

test("what a device appends beyond that goes, but for its accepted update and what is not judged yet", (t) => {
  const keep = new Set([4, 5, 6, 7]);
  const excess = { why: "Excess", round: "job-1" } as const;
  t.deepEqual(plan(open, [part("ann", 77, 65), part("bob", 77, 65)]), [
    { ...excess, device: "ann", part: "chunk", upToSeq: 99, keep },
    { ...excess, device: "ann", part: "commit", upToSeq: 50, keep },
    { ...excess, device: "bob", part: "chunk", upToSeq: 99 },
    { ...excess, device: "bob", part: "commit", upToSeq: 50 },
  ]);
  t.deepEqual(plan(closed, [part("bob", 0, 65)]), [{ ...excess, device: "bob", part: "commit", upToSeq: 50 }]);
});

test("no chunk goes that an update might name which is accepted meanwhile", (t) => {
  const excess = { why: "Excess", round: "job-1", device: "cid", part: "commit", upToSeq: 50 } as const;
  t.deepEqual(plan(open, [part("cid", 1000, 65)]), [excess]);
  t.deepEqual(plan({ ...open, awaited: "anyone" }, [part("bob", 1000)]), []);
  const assignments = ["ann", "bob", "cid", "dan"].map((device) => ({ device }));
  const refused = Array.from({ length: 16 }, (_, i) => ({ commitSeq: 10 + i, manifest: { device: "bob" } }));
  const verdicts = [{ commitSeq: 9, accepted: true, manifest: { device: "ann" } }, ...refused];
  const awaitedOf = (phase: string, site = "") =>
    needOf(
      Round.fromPartial({ status: { phase, assignments: assignments.map((each) => ({ ...each, site })) } }),
      undefined,
      UpdateTally.fromPartial({ verdicts }),
    ).awaited;
  t.deepEqual(awaitedOf("Training"), new Set(["cid", "dan"]));
  t.deepEqual(awaitedOf("Aggregating"), new Set());
  t.is(awaitedOf("Training", "clinic"), "anyone");
  t.deepEqual(awaitedOf("Completed", "clinic"), new Set());
});

test("a round of which later ones may take updates is closed, and ages, only when none does any more", (t) => {
  const assignments = ["ann", "bob"].map((device) => ({ device }));
  const round = Round.fromPartial({
    spec: { number: 3, maxStaleness: 2 },
    status: { phase: "Completed", assignments },
  });
  const tally = UpdateTally.fromPartial({ verdicts: [{ commitSeq: 9, accepted: true, manifest: { device: "ann" } }] });
  const at = (currentRound: number, finishedAtMs = 0) =>
    needOf(round, TrainingJob.fromPartial({ status: { currentRound, finishedAtMs } }), tally);
  t.like(at(5), { closed: false, age: 0, awaited: new Set(["bob"]) });
  t.deepEqual(plan(at(5), [part("bob", 3, 0)]), [], "bob may be about to commit");
  t.like(at(6), { closed: true, age: 1, awaited: new Set() });
  t.like(at(5, 1), { closed: true, age: 0 }, "the job is over");
  t.like(needOf(round, undefined, tally), { closed: true });
  t.deepEqual(plan(at(8), [part("ann")]), [], "the last round that took of it is retained");
  t.deepEqual(plan(at(9), [part("ann")]), [{ why: "Retired", round: "job-1", upToSeq: 99 }]);
});

test("whatever lies in the log: nothing an accepted update names goes before its round is past", (t) => {
  const device = fc.constantFrom("ann", "bob");
  const somePart = fc.record({ device, round: fc.constant("job-1"), chunks: fc.nat(200), commits: fc.nat(200) });
  fc.assert(
    fc.property(fc.array(somePart), fc.boolean(), fc.nat(3), (parts, isClosed, age) => {
      const need = { ...open, closed: isClosed, age };
      for (const { device: of, keep } of planPurges(parts, 99, new Map([["job-1", need]]), 3)) {
        t.not(of, undefined);
        if (of === "ann") t.is(keep, need.accepted.get("ann"));
      }
    }),
  );
});

test("short of space, closed rounds go oldest first, and open ones never", (t) => {
  const needs = new Map([
    ["a-1", { ...closed, age: 2, plannedAtMs: 9 }],
    ["a-2", { ...closed, age: 1, plannedAtMs: 8 }],
    ["b-1", { ...closed, age: 1, plannedAtMs: 1 }],
    ["b-2", open],
  ]);
  const parts = [...needs.keys()].flatMap((round) => [part("ann", 1, 1, round), part("bob", 1, 1, round)]);
  t.deepEqual(dispensableRounds(parts, needs), ["a-1", "b-1", "a-2"]);
  t.is(pressureOf({ bytes: 81, maxBytes: 100 }), "high");
  t.is(pressureOf({ bytes: 80, maxBytes: 100 }), "some");
  t.is(pressureOf({ bytes: 60, maxBytes: 100 }), "none");
  t.is(pressureOf({ bytes: 1e12, maxBytes: undefined }), "none");
});

test("a round's need comes from its task, its phase, its job and its tally", (t) => {
  const round = Round.fromPartial({
    spec: { number: 2, task: { parameters: 131072 * 2 + 1, codec: { name: "fp32" } } },
    status: { phase: "Completed", plannedAtMs: 7 },
  });
  const verdict = { accepted: true, commitSeq: 9, manifest: { device: "ann", chunkSeqs: [7, 8] } };
  const refused = { accepted: false, commitSeq: 8, manifest: { device: "bob", chunkSeqs: [1] } };
  const tally = UpdateTally.fromPartial({ lastSeq: 9, verdicts: [refused, verdict] });
  t.deepEqual(needOf(round, TrainingJob.fromPartial({ status: { currentRound: 5 } }), tally), {
    closed: true,
    age: 3,
    plannedAtMs: 7,
    dueChunks: 3,
    judgedSeq: 9,
    accepted: new Map([["ann", new Set([9])]]),
    awaited: new Set(),
  });
  t.is(needOf(round, undefined, undefined).age, 0);
  t.is(needOf(Round.fromPartial({ status: { phase: "Training" } }), undefined, undefined).dueChunks, Infinity);
});

test("a gateway may send an update for each device of its site, and all that count stay", (t) => {
  const assignments = ["ann", "bob", "cyd"].map((device) => ({ device, site: "pier" }));
  const round = Round.fromPartial({
    spec: { task: { parameters: 100, codec: { name: "fp32" } } },
    status: { phase: "Training", assignments: [...assignments, { device: "dan", site: "" }] },
  });
  const verdicts = [3, 7].map((commitSeq) => ({
    commitSeq,
    accepted: true,
    manifest: { device: "gate", chunkSeqs: [commitSeq - 1] },
  }));
  const need = needOf(round, undefined, UpdateTally.fromPartial({ verdicts, lastSeq: 7 }));
  t.is(need.dueChunks, 3);
  t.deepEqual([...(need.accepted.get("gate") ?? [])], [3, 7]);
});
