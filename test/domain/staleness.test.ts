import test from "ava";
import fc from "fast-check";
import { Round, UpdateTally, Verdict, type FoldEntry } from "#proto/shoal/v1/round.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { advance, isCollecting, newRoundStatus, type RoundFacts } from "#common/domain/round.js";
import {
  carriedTo,
  devicesAtWork,
  earlierNumbers,
  isJobOver,
  lastTaker,
  NOTHING_CARRIED,
  takeBuffer,
  type EarlierRound,
  type Update,
} from "#common/domain/staleness.js";

const verdictOf = (device: string, commitSeq: number, accepted = true): Verdict =>
  Verdict.fromPartial({ commitSeq, accepted, manifest: { device } });
const tallyOf = (verdicts: readonly Verdict[]): UpdateTally => UpdateTally.fromPartial({ verdicts: [...verdicts] });
const updateOf = (device: string, commitSeq: number, expires = false): Update => ({
  verdict: verdictOf(device, commitSeq),
  staleness: 1,
  expires,
});

/** A folded round of an asynchronous job. */
function earlierRound(number: number, devices: readonly string[], verdicts: Verdict[], folded: number[]): EarlierRound {
  const foldSet = folded.map((commitSeq): FoldEntry => ({ device: "", commitSeq, staleness: 0 }));
  const assignments = devices.map((device) => ({ device }));
  const status = { phase: "Completed", assignments, foldSet, quorum: number, awaitsStragglers: true };
  const round = Round.fromPartial({ metadata: { name: `j-${number}` }, spec: { number, maxStaleness: 2 }, status });
  return { round, tally: tallyOf(verdicts) };
}

test("which rounds take which updates", (t) => {
  t.deepEqual(earlierNumbers({ number: 5, maxStaleness: 2 }), [3, 4]);
  t.deepEqual(earlierNumbers({ number: 2, maxStaleness: 9 }), [1]);
  t.deepEqual(earlierNumbers({ number: 5, maxStaleness: 0 }), []);
  t.is(lastTaker({ number: 5, maxStaleness: 3 }, 20), 8);
  t.is(lastTaker({ number: 5, maxStaleness: 3 }, 6), 6, "the job's last round is the last of all");
  t.is(lastTaker({ number: 7, maxStaleness: 0 }, 6), 7, "the round of evaluation");
  t.true(isJobOver(undefined));
  t.true(isJobOver(TrainingJob.fromPartial({ status: { finishedAtMs: 1 } })));
  t.false(isJobOver(TrainingJob.fromPartial({ status: { phase: "Cancelled" } })), "its round may still be folded");
});

test("a round takes over what is accepted and not folded, and who works still", (t) => {
  const three = earlierRound(3, ["ann", "bob", "cyd"], [verdictOf("ann", 31), verdictOf("bob", 52, false)], [31]);
  const four = earlierRound(4, ["dan", "eve"], [verdictOf("eve", 51), verdictOf("dan", 41)], [41]);
  const carried = carriedTo(5, [three, four], 9);
  t.deepEqual(
    carried.waiting.map(({ verdict, staleness, expires }) => [verdict.commitSeq, staleness, expires]),
    [[51, 1, false]],
  );
  t.deepEqual([...carried.atWork], [["cyd", "j-3"]]);
  t.is(carried.quorum, 4, "both promised something, the later one more");
  t.true(carriedTo(6, [four], 9).waiting[0]?.expires, "round 6 is the last for updates of round 4");
  t.true(carriedTo(5, [four], 5).waiting[0]?.expires, "or the job's last round");
  t.deepEqual(carriedTo(5, [], 9), NOTHING_CARRIED);
});

test("a device is at work until it has a verdict or is withdrawn", (t) => {
  const status = { assignments: ["ann", "bob", "cyd"].map((device) => ({ device })), withdrawn: [{ device: "bob" }] };
  t.deepEqual(devicesAtWork(Round.fromPartial({ status }), tallyOf([verdictOf("cyd", 1, false)])), ["ann"]);
});

test("a full buffer holds the first updates of the log, of enough devices, and those that expire", (t) => {
  const updates = ["ann", "ann", "bob", "cyd", "dan"].map((device, k) => updateOf(device, k + 1, device === "dan"));
  const seqs = (size: number, quorum: number): (number | boolean)[] => {
    const { taken, isFull } = takeBuffer(updates, size, quorum);
    return [isFull, ...taken.map(({ verdict }) => verdict.commitSeq)];
  };
  t.deepEqual(seqs(2, 1), [true, 1, 2, 5]);
  t.deepEqual(seqs(2, 2), [true, 1, 2, 3, 5], "two updates of one device are one device");
  t.deepEqual(seqs(6, 1), [false, 1, 2, 3, 4, 5]);
  t.deepEqual(seqs(3, 5), [false, 1, 2, 3, 4, 5]);
});

/** Plays a job of `rounds` rounds on a log that is given, each round seeing more of it; what each folds. */
function play(
  commits: readonly { device: string; round: number }[],
  rounds: number,
  max: number,
  size: number,
): FoldEntry[][] {
  const folds: FoldEntry[][] = [];
  const done: EarlierRound[] = [];
  for (let number = 1; number <= rounds; number++) {
    const upTo = Math.ceil((commits.length * number) / rounds);
    const tallyAt = (n: number): UpdateTally =>
      tallyOf(commits.flatMap(({ device, round }, k) => (k < upTo && round === n ? [verdictOf(device, k + 1)] : [])));
    for (const [i, one] of done.entries()) done[i] = { ...one, tally: tallyAt(i + 1) };
    const window = done.slice(Math.max(0, number - 1 - max));
    const status = { ...newRoundStatus(), phase: "Training", target: size, quorum: 1, deadlineAtMs: 0 };
    const spec = { job: "j", number, maxStaleness: max };
    const round = Round.fromPartial({ metadata: { name: `j-${number}` }, spec, status });
    const facts: RoundFacts = {
      tally: tallyAt(number),
      unjudged: 0,
      lost: new Map(),
      silent: new Set(),
      hasResult: false,
      jobStopped: false,
      carried: carriedTo(number, window, rounds),
      rounds,
      completedRounds: number - 1,
    };
    const next = advance(round, facts, 1);
    const folded = next.changed ? next.status : newRoundStatus();
    folds.push(folded.foldSet);
    done.push({ round: { ...round, status: folded }, tally: facts.tally });
  }
  return folds;
}

test("whatever comes when: an update is folded once, in time, in log order, and none in time is lost", (t) => {
  const commit = fc.record({
    device: fc.constantFrom("ann", "bob", "cyd", "dan"),
    round: fc.integer({ min: 1, max: 6 }),
  });
  fc.assert(
    fc.property(
      fc.array(commit, { maxLength: 20 }),
      fc.integer({ min: 1, max: 4 }),
      fc.integer({ min: 1, max: 5 }),
      (commits, max, size) => {
        const rounds = 6;
        const folds = play(commits, rounds, max, size);
        const all = folds.flat().map(({ commitSeq }) => commitSeq);
        if (new Set(all).size !== all.length) return false;
        for (const [i, fold] of folds.entries()) {
          for (const [k, { commitSeq, staleness, device }] of fold.entries()) {
            const commit = commits[commitSeq - 1];
            if (commit?.device !== device || commit.round !== i + 1 - staleness) return false;
            if (staleness > max || commitSeq <= (fold[k - 1]?.commitSeq ?? 0)) return false;
          }
        }
        // Of each device and round the first; those that came while a round could take them.
        return commits.every(({ device, round }, k) => {
          const isFirst = commits.findIndex((one) => one.device === device && one.round === round) === k;
          const seenBy = Math.max(round, Math.floor((k * rounds) / commits.length) + 1);
          const isInTime = seenBy <= lastTaker({ number: round, maxStaleness: max }, rounds);
          return !isFirst || !isInTime || all.includes(k + 1);
        });
      },
    ),
    { numRuns: 1000 },
  );
  t.pass();
});

const NAMES = ["ann", "bob", "cyd"];

function asynchronous(status: Partial<Round["status"]> = {}, number = 2): Round {
  const assignments = NAMES.map((device) => ({ device, localSteps: 5 }));
  const base = { ...newRoundStatus(), assignments, phase: "Training", deadlineAtMs: 1000, target: 2, quorum: 1 };
  const spec = { job: "j", number, maxStaleness: 2 };
  return Round.fromPartial({ metadata: { name: `j-${number}`, generation: 1 }, spec, status: { ...base, ...status } });
}

const facts = (over: Partial<RoundFacts> = {}): RoundFacts => ({
  tally: undefined,
  unjudged: 0,
  lost: new Map(),
  silent: new Set(),
  hasResult: false,
  jobStopped: false,
  carried: NOTHING_CARRIED,
  rounds: 9,
  completedRounds: 1,
  ...over,
});

test("a round folds stale updates with its own, and its devices train on", (t) => {
  const carried = { waiting: [updateOf("dan", 5)], atWork: new Map([["eve", "j-1"]]), quorum: 1 };
  const waits = facts({ carried });
  t.deepEqual(advance(asynchronous(), waits, 0), { changed: false, wakeAtMs: 1000 });
  t.true(isCollecting(asynchronous(), waits, 0));
  const full = facts({ carried, tally: tallyOf([verdictOf("ann", 7)]) });
  t.false(isCollecting(asynchronous(), full, 0));
  const next = advance(asynchronous(), full, 0);
  if (!next.changed) return t.fail();
  t.deepEqual(next.status.foldSet, [
    { device: "dan", commitSeq: 5, staleness: 1 },
    { device: "ann", commitSeq: 7, staleness: 0 },
  ]);
  t.deepEqual([next.status.phase, next.status.awaitsStragglers, next.status.withdrawn], ["Aggregating", true, []]);
  const last = advance(asynchronous({}, 9), full, 0);
  t.like(last.changed && last.status, { awaitsStragglers: false });
  t.deepEqual(last.changed && last.status.withdrawn.map(({ device }) => device), ["bob", "cyd"], "no round follows");
  return undefined;
});

test("nothing is folded over the head of a commit without a verdict, and nobody is given up while others work", (t) => {
  const full = { tally: tallyOf([verdictOf("ann", 7), verdictOf("bob", 8)]) };
  t.deepEqual(advance(asynchronous(), facts({ ...full, unjudged: 1 }), 0), { changed: false, wakeAtMs: 2000 });
  const lost = new Map(NAMES.map((device) => [device, ["failed"]]));
  const alone = { ...NOTHING_CARRIED, atWork: new Map([["eve", "j-1"]]) };
  const withdrawn = advance(asynchronous(), facts({ lost, carried: alone }), 0);
  t.like(withdrawn.changed && withdrawn.status, { phase: "Training" });
  const replanned = advance(asynchronous(), facts({ lost }), 0);
  t.like(replanned.changed && replanned.status, { phase: "Planning", attempt: 1 });
});

test("a folded round follows its devices until they are done, lost, or too late", (t) => {
  const folded = asynchronous({ phase: "Completed", awaitsStragglers: true });
  const seen = (over: Partial<RoundFacts>) => {
    const next = advance(folded, facts(over), 0);
    if (!next.changed) return "as it was";
    const { phase, awaitsStragglers, withdrawn } = next.status;
    return `${phase} ${awaitsStragglers ? "waits" : "over"} ${withdrawn.map(({ device }) => device).join(" ")}`.trim();
  };
  t.is(seen({}), "as it was");
  t.is(seen({ tally: tallyOf([verdictOf("ann", 3)]) }), "as it was");
  t.is(seen({ lost: new Map([["bob", ["vanished"]]]) }), "Completed waits bob");
  t.is(seen({ tally: tallyOf(NAMES.map((name, k) => verdictOf(name, k))) }), "Completed over");
  t.is(seen({ completedRounds: 3 }), "as it was");
  t.is(seen({ completedRounds: 4, tally: tallyOf([verdictOf("ann", 3)]) }), "Completed over bob cyd");
  t.is(seen({ completedRounds: 3, rounds: 3 }), "Completed over ann bob cyd");
  t.is(seen({ jobStopped: true }), "Completed over ann bob cyd");
  const aggregating = asynchronous({ phase: "Aggregating", awaitsStragglers: true });
  const done = advance(aggregating, facts({ hasResult: true }), 0);
  t.like(done.changed && done.status, { phase: "Completed", awaitsStragglers: true });
});
