import test, { type ExecutionContext } from "ava";
import fc from "fast-check";
import { assignmentStatuses, roundOf, type AgentEvent, type Effect } from "#agent/state.js";
import { goTogether } from "#agent/overlap.js";
import { EXIT_REJECTED } from "#agent/step.js";
import { makeTask } from "./support/tasks.js";
import { started, type Walk } from "./support/walk.js";

/** A walk whose work on a-1 is in training. */
function training(): Walk {
  const walk = started().reply("a-1").do({ type: "guarded", round: "a-1", reasons: [] });
  walk.do({ type: "fetched", work: walk.work });
  return walk.do({ type: "read", work: walk.work });
}

test("an assignment goes from the guard over fetch, read, train and upload to its commit", (t) => {
  const walk = started();
  t.deepEqual(walk.names, ["heartbeat"]);
  t.deepEqual(walk.reply("a-1").names, ["guard a-1", "sleep"]);
  t.deepEqual(walk.do({ type: "guarded", round: "a-1", reasons: [] }).names, ["fetch a-1"]);
  t.deepEqual(walk.do({ type: "fetched", work: walk.work }).names, ["read a-1"]);
  t.deepEqual(walk.do({ type: "read", work: walk.work }).names, ["train a-1"]);
  walk.do({ type: "trainingProgress", work: walk.work, step: 2, loss: 1.5 });
  t.like(assignmentStatuses(walk.state)[0], { phase: "Training", step: 2, steps: 3, loss: 1.5 });
  t.deepEqual(walk.do({ type: "trained", work: walk.work }).names, ["upload a-1"]);
  t.deepEqual(walk.phases(), ["a-1 Uploading"]);
  t.deepEqual(walk.do({ type: "committed", work: walk.work }).names, ["heartbeat"]);
  t.deepEqual(walk.phases(), ["a-1 Committed"]);
});

test("a refusal carries its reasons, is reported at once, and the next assignment goes on", (t) => {
  const walk = started().reply("a-1", "b-1");
  t.deepEqual(walk.do({ type: "guarded", round: "a-1", reasons: ["too small"] }).names, ["heartbeat"]);
  t.like(assignmentStatuses(walk.state)[0], { phase: "Refused", reasons: ["too small"] });
  t.deepEqual(walk.do({ type: "guarded", round: "b-1", reasons: [] }).names, ["fetch b-1"]);
});

test("a refusal at reading time is one too", (t) => {
  const walk = started().reply("a-1").do({ type: "guarded", round: "a-1", reasons: [] });
  walk.do({ type: "fetched", work: walk.work });
  walk.do({ type: "refused", work: walk.work, reasons: ["hours"] });
  t.deepEqual(walk.phases(), ["a-1 Refused"]);
  t.is(walk.state.work, undefined);
});

test("assignments are taken oldest first and one at a time", (t) => {
  const walk = started().reply("b-1", "a-1");
  walk.do({ type: "guarded", round: "b-1", reasons: [] });
  t.deepEqual(walk.do({ type: "guarded", round: "a-1", reasons: [] }).names, []);
  t.is(walk.state.work?.round, "b-1");
});

test("a withdrawn assignment is abandoned, and its end is awaited before the next begins", (t) => {
  const walk = training();
  const { work } = walk;
  t.deepEqual(walk.reply("b-1").names, ["guard b-1", "abort", "sleep"]);
  t.deepEqual(walk.do({ type: "guarded", round: "b-1", reasons: [] }).names, []);
  t.deepEqual(walk.do({ type: "aborted", work }).names, ["fetch b-1"]);
});

test("an update that was spooled as its round was withdrawn is discarded", (t) => {
  const walk = training();
  const { work } = walk;
  walk.reply();
  t.deepEqual(walk.do({ type: "trained", work }).names, ["discard a-1"]);
  t.deepEqual(walk.do({ type: "discarded", work: walk.work }).names, []);
  t.deepEqual(walk.state.spooled, []);
});

test("an update whose commit may be in the log is never taken back", (t) => {
  const walk = training();
  walk.do({ type: "trained", work: walk.work });
  walk.do({ type: "commitSending", work: walk.work });
  t.deepEqual(walk.reply().names, ["sleep"]);
  walk.do({ type: "committed", work: walk.work });
  t.true(walk.state.committed.has("a-1"));
});

test("a spooled update of an earlier life goes before everything else", (t) => {
  const walk = started([], [{ round: "a-1", commitSent: false }]);
  t.deepEqual(walk.names, ["heartbeat", "upload a-1"]);
  walk.reply("a-1", "b-1").do({ type: "guarded", round: "b-1", reasons: [] });
  t.is(walk.state.work?.kind, "upload");
  walk.do({ type: "failed", work: walk.work, reason: "TIMEOUT", message: "link", retry: "soon" });
  t.deepEqual(walk.names, ["sleep a-1"]);
  t.is(walk.state.work, undefined);
  t.deepEqual(walk.do({ type: "timer", timer: "retry", round: "a-1" }).names, ["upload a-1"]);
});

test("a committed round that is still listed is not touched again", (t) => {
  const walk = started(["a-1"]).reply("a-1");
  t.deepEqual(walk.names, ["sleep"]);
  t.deepEqual(walk.phases(), ["a-1 Committed"]);
});

test("a round of a job that was deleted and applied again is another round", (t) => {
  const again = makeTask("a-1", { jobUid: "22222222-2222" });
  for (const committed of ["a-1", "a-1@11111111"]) {
    const walk = started([committed]);
    walk.do({ type: "heartbeatReplied", tasks: [again], nextHeartbeatMs: 500, cordoned: false });
    t.deepEqual(walk.names, ["guard a-1@22222222", "sleep"]);
    t.deepEqual(walk.do({ type: "guarded", round: "a-1@22222222", reasons: [] }).names, ["fetch a-1@22222222"]);
    t.deepEqual(walk.phases(), ["a-1 Fetching"]);
  }
  const known = started(["a-1@22222222"]).do({
    type: "heartbeatReplied",
    tasks: [again],
    nextHeartbeatMs: 500,
    cordoned: false,
  });
  t.deepEqual([known.names, known.phases()], [["sleep"], ["a-1 Committed"]]);
});

test("work and updates of a deleted job make way for the one of its name, even past their commit mark", (t) => {
  const [old, again] = ["11111111", "22222222"].map((jobUid) => makeTask("a-1", { jobUid }));
  if (old === undefined || again === undefined) return t.fail();
  const walk = started().do({ type: "heartbeatReplied", tasks: [old], nextHeartbeatMs: 500, cordoned: false });
  walk.do({ type: "guarded", round: "a-1@11111111", reasons: [] });
  const { work } = walk;
  walk.do({ type: "heartbeatReplied", tasks: [again], nextHeartbeatMs: 500, cordoned: false });
  t.deepEqual(walk.names, ["guard a-1@22222222", "abort", "sleep"]);
  walk.do({ type: "guarded", round: "a-1@22222222", reasons: [] });
  t.deepEqual(walk.do({ type: "aborted", work }).names, ["fetch a-1@22222222"]);

  const spooled = started([], [{ round: "a-3@11111111", commitSent: true }]);
  const upload = spooled.work;
  spooled.do({ type: "heartbeatReplied", tasks: [again], nextHeartbeatMs: 500, cordoned: false });
  t.deepEqual(spooled.names, ["guard a-1@22222222", "abort", "sleep"]);
  t.deepEqual(spooled.do({ type: "aborted", work: upload }).names, ["discard a-3@11111111"]);
});

test("a full spool is reported as failed and tried again later", (t) => {
  const walk = training();
  walk.do({ type: "failed", work: walk.work, reason: "SpoolFull", message: "free space", retry: "later" });
  t.deepEqual(walk.names, ["sleep a-1", "heartbeat"]);
  t.like(assignmentStatuses(walk.state)[0], { phase: "Failed", reasons: ["SpoolFull: free space"] });
  t.deepEqual(walk.do({ type: "timer", timer: "retry", round: "a-1" }).names, ["fetch a-1"]);
});

test("a hopeless failure is final until the assignment is given anew", (t) => {
  const walk = training();
  walk.do({ type: "failed", work: walk.work, reason: "NoData", message: "empty", retry: "never" });
  t.deepEqual(walk.names, ["heartbeat"]);
  t.deepEqual(walk.reply("a-1").names, ["sleep"]);
  walk.do({ type: "timer", timer: "heartbeat" }).reply();
  t.deepEqual(walk.do({ type: "timer", timer: "heartbeat" }).reply("a-1").names, ["guard a-1", "sleep"]);
});

test("a damaged spool entry lets the round be trained again, unless its commit may be in the log", (t) => {
  for (const commitSent of [false, true]) {
    const walk = started([], [{ round: "a-1", commitSent }]).reply("a-1");
    walk.do({ type: "failed", work: walk.work, reason: "SPOOL_CORRUPT", message: "damaged", retry: "never" });
    t.deepEqual(walk.names, [commitSent ? "heartbeat" : "fetch a-1"]);
    t.deepEqual(walk.phases(), [commitSent ? "a-1 Failed" : "a-1 Fetching"]);
  }
});

test("heartbeats back off, and a nudge or news during one makes another", (t) => {
  const walk = started().do({ type: "heartbeatFailed" });
  const waits: number[] = [];
  for (let i = 0; i < 6; i++) {
    for (const effect of walk.effects) if (effect.type === "sleep") waits.push(effect.ms);
    walk.do({ type: "timer", timer: "heartbeat" }).do({ type: "heartbeatFailed" });
  }
  t.deepEqual(waits, [1000, 2000, 4000, 8000, 8000, 8000]);
  t.deepEqual(walk.do({ type: "nudged" }).names, ["heartbeat"]);
  t.deepEqual(walk.do({ type: "nudged" }).names, []);
  t.deepEqual(walk.reply().names, ["heartbeat"]);
  t.deepEqual(walk.reply().names, ["sleep"]);
});

test("stopping waits for the work, and a rejected credential has its own code", (t) => {
  const walk = training();
  const { work } = walk;
  t.deepEqual(walk.do({ type: "rejected", message: "gone" }).names, ["abort"]);
  t.deepEqual(walk.do({ type: "stop" }).names, []);
  t.deepEqual(walk.do({ type: "aborted", work }).effects, [{ type: "exit", code: EXIT_REJECTED, message: "gone" }]);
  t.deepEqual(walk.do({ type: "nudged" }).names, []);
  t.like(started().do({ type: "stop" }).effects[0], { type: "exit", code: 0 });
});

/** Plays a world against the agent: answers its effects in any order, with any outcome, and withdraws at will. */
const rounds = ["a-1", "a-2", "b-1"];
const choice = fc.record({
  what: fc.constantFrom("reply", "end", "end", "end", "guard", "nudge", "timer", "failHeartbeat", "progress", "ahead"),
  cordoned: fc.integer({ max: 7, min: 0 }).map((drawn) => drawn === 0),
  subset: fc.subarray(rounds),
  index: fc.nat(),
});

interface World {
  allowed: Set<string>;
  listed: Set<string>;
  committed: Set<string>;
  onDisk: Set<string>;
  guards: string[];
  running: Exclude<Extract<Effect, { work: number }>, { type: "abort" | "overlap" }> | undefined;
  ahead: Extract<Effect, { type: "overlap" }> | undefined;
  cordoned: boolean;
  inFlight: boolean;
}

function observe(t: ExecutionContext, world: World, effects: Effect[]): void {
  for (const effect of effects) {
    if (effect.type === "heartbeat") {
      t.false(world.inFlight, "two heartbeats at once");
      world.inFlight = true;
    }
    if (effect.type === "guard") {
      t.false(world.committed.has(roundOf(effect.task)));
      world.guards.push(roundOf(effect.task));
    }
    if (!("work" in effect) || effect.type === "abort") continue;
    if (effect.type === "overlap") {
      t.is(world.ahead, undefined, "steps ahead twice");
      t.true(world.onDisk.has(roundOf(effect.task)), "steps ahead of an update that is not safe");
      t.false(world.cordoned);
      world.ahead = effect;
      continue;
    }
    t.is(world.running, undefined, "two works at once");
    world.running = effect;
    if (!("task" in effect)) continue;
    const round = roundOf(effect.task);
    const { ahead } = world;
    if (effect.type === "train") t.is(ahead, undefined, "two trainings at once");
    else if (ahead !== undefined) t.true(goTogether(ahead.task, effect.task), "another job beside steps ahead");
    t.true(world.allowed.has(round), `${effect.type} before the guard allowed ${round}`);
    t.true(world.listed.has(round), `${effect.type} of a withdrawn round`);
    t.false(world.committed.has(round), "a committed round is trained again");
    if (effect.type === "train" || effect.type === "fetch") t.is(world.onDisk.size, 0, "training before upload");
  }
}

const results = {
  fetch: "fetched",
  read: "read",
  train: "trained",
  upload: "committed",
  discard: "discarded",
} as const;

function endOf(world: World, index: number): AgentEvent[] {
  const { running } = world;
  if (running === undefined) return [];
  world.running = undefined;
  const { work } = running;
  const round = "task" in running ? roundOf(running.task) : running.round;
  const outcome = index % 5;
  if (outcome === 0) return [{ type: "aborted", work }];
  if (outcome === 1 && running.type !== "discard") {
    const retry = (["soon", "later", "never"] as const)[index % 3] ?? "soon";
    if (retry === "never" && running.type === "upload") world.onDisk.delete(round);
    return [{ type: "failed", work, reason: "X", message: "x", retry }];
  }
  if (running.type === "train") world.onDisk.add(round);
  if (running.type === "upload") world.committed.add(round);
  if (running.type === "upload" || running.type === "discard") world.onDisk.delete(round);
  return [{ type: results[running.type], work }];
}

test("whatever the world does: one work at a time, guarded, never committed twice, outbox first", (t) => {
  fc.assert(
    fc.property(fc.array(choice, { maxLength: 60 }), (choices) => {
      const world: World = {
        allowed: new Set(),
        listed: new Set(),
        committed: new Set(),
        onDisk: new Set(),
        guards: [],
        running: undefined,
        ahead: undefined,
        cordoned: false,
        inFlight: false,
      };
      const walk = started();
      observe(t, world, walk.effects);
      for (const { what, subset, index, cordoned } of choices) {
        const events: AgentEvent[] = [];
        if (what === "reply" && world.inFlight) {
          world.inFlight = false;
          for (const round of rounds) if (!subset.includes(round)) world.allowed.delete(round);
          world.listed = new Set(subset);
          world.cordoned = cordoned;
          const tasks = subset.map((round) => makeTask(round, { overlapSteps: round === "b-1" ? 0 : 2 }));
          events.push({ type: "heartbeatReplied", tasks, nextHeartbeatMs: 1, cordoned });
        }
        if (what === "failHeartbeat" && world.inFlight) {
          world.inFlight = false;
          events.push({ type: "heartbeatFailed" });
        }
        const guarded = what === "guard" ? world.guards.shift() : undefined;
        if (guarded !== undefined) {
          if (world.listed.has(guarded)) world.allowed.add(guarded);
          events.push({ type: "guarded", round: guarded, reasons: [] });
        }
        if (what === "end") events.push(...endOf(world, index));
        if (what === "ahead" && world.ahead !== undefined) {
          events.push({ type: "overlapped", work: world.ahead.work });
          world.ahead = undefined;
        }
        if (what === "nudge") events.push({ type: "nudged" });
        if (what === "timer") events.push({ type: "timer", timer: "retry", round: rounds[index % 3] ?? "" });
        if (what === "progress") events.push({ type: "trainingProgress", work: index % 20, step: 1, loss: 1 });
        for (const event of events) {
          const before = structuredClone({ ...walk.state, committed: [...walk.state.committed] });
          const previous = walk.state;
          observe(t, world, walk.do(event).effects);
          t.deepEqual({ ...previous, committed: [...previous.committed] }, before, "step changed its argument");
        }
        const { work, overlap } = walk.state;
        t.deepEqual(work?.held === undefined ? work?.id : undefined, world.running?.work);
        t.is(overlap?.id, world.ahead?.work);
        t.true(work?.held === undefined || overlap !== undefined, "work waits for nothing");
      }
    }),
    { numRuns: 300 },
  );
});
