import test from "ava";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { ownJob, ownRecord } from "#common/domain/own-record.js";

const round = Round.fromPartial({ metadata: { name: "j-1", uid: "own" } });
const written = (roundUid: string): UpdateTally => UpdateTally.fromPartial({ roundUid });

const CASES: readonly [string, Round | undefined, UpdateTally | undefined, boolean][] = [
  ["what was written for the round is its own", round, written("own"), true],
  ["what was written for another of its name is not", round, written("older"), false],
  ["what a version wrote that did not say the uid is taken for its own", round, written(""), true],
  ["nothing is nothing", round, undefined, false],
  ["without a round there is nothing of it", undefined, written("own"), false],
  ["not even what says no uid", undefined, written(""), false],
  ["a round without metadata has no uid", Round.fromPartial({}), written("older"), false],
];

for (const [what, of, stored, isOwn] of CASES) {
  test(what, (t) => {
    t.is(ownRecord(of, stored), isOwn ? stored : undefined);
  });
}

test("a round's job is the one that it was created for", (t) => {
  const job = TrainingJob.fromPartial({ metadata: { name: "j", uid: "own" } });
  const created = (jobUid: string): Round => Round.fromPartial({ spec: { job: "j", task: { jobUid } } });
  t.is(ownJob(created("own"), job), job);
  t.is(ownJob(created("older"), job), undefined);
  t.is(ownJob(created(""), job), job, "of a version that did not say it");
  t.is(ownJob(created("own"), undefined), undefined);
});
