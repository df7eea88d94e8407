import test from "ava";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { makeTask } from "./support/tasks.js";
import { started, type Walk } from "./support/walk.js";

/** A walk whose update of a-1 travels while it takes steps ahead. */
function overlapping(): Walk & { ahead: number } {
  const walk = started().replyAhead("a-1").do({ type: "guarded", round: "a-1", reasons: [] });
  for (const type of ["fetched", "read", "trained"] as const) walk.do({ type, work: walk.work });
  return Object.assign(walk, { ahead: walk.state.overlap?.id ?? -1 });
}

test("steps ahead go on while the update travels and the next round is fetched, and its training waits for them", (t) => {
  const walk = overlapping();
  t.deepEqual(walk.names, ["overlap a-1", "upload a-1"]);
  walk.do({ type: "committed", work: walk.work });
  t.deepEqual(walk.replyAhead("a-2").names, ["guard a-2", "sleep"]);
  t.deepEqual(walk.do({ type: "guarded", round: "a-2", reasons: [] }).names, ["fetch a-2"]);
  t.deepEqual(walk.do({ type: "fetched", work: walk.work }).names, ["read a-2"]);
  t.deepEqual(walk.do({ type: "read", work: walk.work }).names, []);
  t.deepEqual(walk.phases(), ["a-2 Training"]);
  t.deepEqual(walk.do({ type: "overlapped", work: 99 }).names, []);
  t.deepEqual(walk.do({ type: "overlapped", work: walk.ahead }).names, ["train a-2"]);
  t.deepEqual(walk.do({ type: "trained", work: walk.work }).names, ["overlap a-2", "upload a-2"]);
});

test("steps ahead that end first hold nothing up", (t) => {
  const walk = overlapping().do({ type: "overlapped", work: 4 });
  t.deepEqual([walk.names, walk.state.overlap], [[], undefined]);
  walk.do({ type: "committed", work: walk.work }).replyAhead("a-2");
  walk.do({ type: "guarded", round: "a-2", reasons: [] }).do({ type: "fetched", work: walk.work });
  t.deepEqual(walk.do({ type: "read", work: walk.work }).names, ["train a-2"]);
});

test("there are none ahead of what overlaps nothing, of a job that is not alone, or on a cordoned device", (t) => {
  const none = (tasks: AssignedTask[], cordoned = false): void => {
    const walk = started().do({ type: "heartbeatReplied", tasks, nextHeartbeatMs: 500, cordoned });
    walk.do({ type: "guarded", round: "a-1", reasons: [] });
    for (const type of ["fetched", "read", "trained"] as const) walk.do({ type, work: walk.work });
    t.deepEqual(walk.names, ["upload a-1"]);
  };
  const overlapped = makeTask("a-1", { overlapSteps: 2 });
  none([makeTask("a-1", { overlapSteps: 0 })]);
  none([makeTask("a-1", { overlapSteps: 2, localSteps: 1 })]);
  none([overlapped, makeTask("b-1")]);
  none([overlapped], true);
});

test("another job's assignment has the steps ahead end, and begins after them", (t) => {
  const walk = overlapping();
  walk.do({ type: "committed", work: walk.work }).replyAhead("b-1");
  t.deepEqual(walk.do({ type: "guarded", round: "b-1", reasons: [] }).names, ["abort"]);
  t.deepEqual(walk.do({ type: "overlapped", work: walk.ahead }).names, ["fetch b-1"]);

  const withdrawn = overlapping();
  withdrawn.do({ type: "committed", work: withdrawn.work }).replyAhead("b-1");
  withdrawn.do({ type: "guarded", round: "b-1", reasons: [] });
  t.deepEqual(withdrawn.reply().names, ["sleep"]);
  t.is(withdrawn.state.work, undefined);
  t.deepEqual(withdrawn.do({ type: "overlapped", work: withdrawn.ahead }).names, []);
});

test("steps ahead end when their update is taken back or lost, the job is another, or the device is cordoned", (t) => {
  const taken = overlapping();
  t.deepEqual(taken.reply().names, ["abort", "abort", "sleep"]);
  taken.do({ type: "aborted", work: taken.work });
  t.deepEqual(taken.names, ["discard a-1"]);

  const lost = overlapping();
  lost.do({ type: "failed", work: lost.work, reason: "SPOOL_CORRUPT", message: "damaged", retry: "never" });
  t.deepEqual(lost.names, ["abort", "fetch a-1"]);

  const committed = (): Walk => {
    const walk = overlapping();
    return walk.do({ type: "committed", work: walk.work });
  };
  const again = makeTask("a-1", { jobUid: "22222222" });
  const reply = { type: "heartbeatReplied", nextHeartbeatMs: 500 } as const;
  t.deepEqual(committed().do({ ...reply, tasks: [again], cordoned: false }).names, [
    "guard a-1@22222222",
    "abort",
    "sleep",
  ]);
  t.deepEqual(committed().do({ ...reply, tasks: [], cordoned: true }).names, ["abort", "sleep"]);
  t.deepEqual(committed().do({ ...reply, tasks: [], cordoned: false }).names, ["sleep"]);
});

test("stopping waits for steps ahead too", (t) => {
  const walk = overlapping();
  t.deepEqual(walk.do({ type: "stop" }).names, ["abort", "abort"]);
  t.deepEqual(walk.do({ type: "aborted", work: walk.work }).names, []);
  t.deepEqual(walk.do({ type: "overlapped", work: walk.ahead }).names, ["exit"]);
});
