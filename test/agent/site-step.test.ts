import test from "ava";
import fc from "fast-check";
import type { SiteRound } from "#proto/shoal/v1/device_wire.js";
import {
  initialSiteState,
  siteStatuses,
  type SiteEffect,
  type SiteEvent,
  type SiteState,
  type SiteUpdate,
} from "#agent/site/state.js";
import { cutOffMs, stepSite } from "#agent/site/step.js";
import { memberCommit, ROUND, siteRound, SiteWorld } from "./support/site-world.js";

/** A line for an effect: what is done, with what. */
function told(effect: SiteEffect): string {
  switch (effect.type) {
    case "sleep":
      return effect.timer === "heartbeat" ? `beat in ${effect.ms}` : `${effect.timer} ${effect.key} in ${effect.ms}`;
    case "judge":
      return `judge ${effect.round.task?.round ?? ""}`;
    case "fold":
      return `fold ${effect.update.key}: ${effect.commits.map(({ device, refusal }) => device + (refusal === "" ? "" : "!")).join(" ")}`;
    case "upload":
    case "discard":
      return `${effect.type} ${effect.key}`;
    case "purge":
      return `purge ${effect.name}`;
    default:
      return effect.type;
  }
}

/** Plays events on a gateway that runs and knows no round; the effects of each. */
function play(
  events: readonly SiteEvent[],
  updates: readonly SiteUpdate[] = [],
): { traced: string[]; state: SiteState } {
  let state = stepSite(initialSiteState, { type: "started", updates }).state;
  const traced = events.map((event) => {
    const next = stepSite(state, event);
    state = next.state;
    return next.effects.map(told).join(", ");
  });
  return { traced, state };
}

const reply = (...rounds: SiteRound[]): SiteEvent => ({
  type: "heartbeatReplied",
  rounds,
  atMs: 0,
  nextHeartbeatMs: 500,
});
const beatTimer: SiteEvent = { type: "timer", timer: "heartbeat" };
const arrived: SiteEvent = { type: "committedAtSite", name: ROUND };
const judged = (work: number, ...names: string[]): SiteEvent => ({
  type: "judged",
  work,
  commits: names.map((name, i) => memberCommit(name.replace("!", ""), i + 1, name.endsWith("!") ? "NotFinite" : "")),
});
const logRead = (isPressed: boolean, ...logged: string[]): SiteEvent => ({ type: "logRead", logged, isPressed });
const first = "nudgeMembers, beat in 500, judge tiny-1";
const opening = `cutOff tiny-1 in 80000, ${first}`;

const traces: [string, SiteEvent[], string[]][] = [
  [
    "all members commit: one update, sent and done with",
    [
      reply(siteRound(["ann", "bob"])),
      judged(1),
      arrived,
      judged(2, "ann"),
      arrived,
      judged(3, "bob"),
      { type: "folded", work: 4 },
      { type: "uploaded", work: 5, commitSeq: 7 },
      beatTimer,
      reply(),
    ],
    [
      opening,
      "",
      "judge tiny-1",
      "",
      "judge tiny-1",
      "fold tiny-1+0: ann bob",
      "upload tiny-1+0",
      "",
      "heartbeat",
      "beat in 500",
    ],
  ],
  [
    "at the cut-off what is there is folded; who comes later goes into another update",
    [
      reply(siteRound(["ann", "bob"])),
      judged(1, "ann"),
      { type: "timer", timer: "cutOff", key: ROUND },
      { type: "folded", work: 2 },
      { type: "uploaded", work: 3, commitSeq: 7 },
      arrived,
      judged(4, "bob"),
    ],
    [opening, "", "fold tiny-1+0: ann", "upload tiny-1+0", "", "judge tiny-1", "fold tiny-1+1: bob"],
  ],
  [
    "nothing of a job is folded while an earlier update of it waits to be sent: what that one lost is not known yet",
    [
      reply(siteRound(["ann", "bob"])),
      judged(1, "ann"),
      { type: "timer", timer: "cutOff", key: ROUND },
      { type: "folded", work: 2 },
      { type: "failed", work: 3, reason: "TIMEOUT", message: "no answer", retry: "soon" },
      arrived,
      judged(4, "bob"),
      { type: "timer", timer: "retry", key: "tiny-1+0" },
      { type: "uploaded", work: 5, commitSeq: 7 },
    ],
    [
      opening,
      "",
      "fold tiny-1+0: ann",
      "upload tiny-1+0",
      "retry tiny-1+0 in 1000",
      "judge tiny-1",
      "",
      "upload tiny-1+0",
      "fold tiny-1+1: bob",
    ],
  ],
  [
    "without room for its update it says so at once, keeps the members' commits, and folds them again in a while",
    [
      reply(siteRound(["ann", "bob"])),
      judged(1, "ann", "bob"),
      { type: "failed", work: 2, reason: "DiskLow", message: "free space there", retry: "later" },
      { type: "timer", timer: "retry", key: ROUND },
      { type: "folded", work: 3 },
    ],
    [
      opening,
      "fold tiny-1+0: ann bob",
      "retry tiny-1 in 30000, heartbeat",
      "fold tiny-1+0: ann bob",
      "upload tiny-1+0",
    ],
  ],
  [
    "a damaged update is refused and told, and the others are folded without it",
    [
      reply(siteRound(["ann", "bob"])),
      judged(1, "ann", "bob"),
      { type: "damaged", work: 2, commit: memberCommit("ann", 1, "BadPayload") },
      { type: "folded", work: 3 },
    ],
    [opening, "fold tiny-1+0: ann bob", "fold tiny-1+0: ann! bob", "upload tiny-1+0"],
  ],
  [
    "what nobody was told of in two answers is over, and leaves a log that is short of space if a later round follows",
    [
      reply(siteRound(["ann"])),
      judged(1),
      logRead(true, "old-2", "old-3", "other-1", "tiny-1"),
      logRead(true, "old-2", "old-3", "other-1", "tiny-1"),
      { type: "done", work: 2 },
      logRead(true, "old-3", "other-1", "tiny-1"),
    ],
    [opening, "", "", "purge old-2", "", ""],
  ],
  [
    "what is refused at the site is told beside the others",
    [reply(siteRound(["ann", "bob"])), judged(1, "ann", "bob!")],
    [opening, "fold tiny-1+0: ann bob!"],
  ],
  [
    "a rule that compares updates gets each by itself, at once",
    [
      reply(siteRound(["ann", "bob"], { siteWeighting: "" })),
      judged(1, "ann"),
      { type: "folded", work: 2 },
      { type: "uploaded", work: 3, commitSeq: 7 },
      arrived,
      judged(4, "bob"),
    ],
    [opening, "fold tiny-1+0: ann", "upload tiny-1+0", "", "judge tiny-1", "fold tiny-1+1: bob"],
  ],
  [
    "refused by the aggregator, because one was counted directly: the rest is folded anew",
    [
      reply(siteRound(["ann", "bob"])),
      judged(1, "ann", "bob"),
      { type: "folded", work: 2 },
      { type: "uploaded", work: 3, commitSeq: 7 },
      beatTimer,
      reply(siteRound(["ann"], { judgedSeq: 6 })),
      beatTimer,
      reply(siteRound(["ann"], { judgedSeq: 7 })),
    ],
    [
      opening,
      "fold tiny-1+0: ann bob",
      "upload tiny-1+0",
      "",
      "heartbeat",
      "beat in 500",
      "heartbeat",
      "beat in 500, fold tiny-1+1: ann",
    ],
  ],
  [
    "a withdrawn member is not waited for",
    [reply(siteRound(["ann", "bob"])), judged(1, "ann"), beatTimer, reply(siteRound(["ann"]))],
    [opening, "", "heartbeat", "beat in 500, fold tiny-1+0: ann"],
  ],
  [
    "a round that is over: what is not sent is dropped, also in the middle of folding",
    [
      reply(siteRound(["ann"])),
      judged(1, "ann"),
      beatTimer,
      reply(),
      { type: "folded", work: 2 },
      { type: "done", work: 3 },
    ],
    [opening, "fold tiny-1+0: ann", "heartbeat", "abort, beat in 500", "discard tiny-1+0", ""],
  ],
  [
    "a commit that may be in the log is not taken back",
    [
      reply(siteRound(["ann"])),
      judged(1, "ann"),
      { type: "folded", work: 2 },
      { type: "commitSending", work: 3 },
      beatTimer,
      reply(),
      { type: "uploaded", work: 3, commitSeq: 7 },
    ],
    [opening, "fold tiny-1+0: ann", "upload tiny-1+0", "", "heartbeat", "beat in 500", ""],
  ],
  [
    "a failed upload is tried again; other work goes on",
    [
      reply(siteRound(["ann", "bob"])),
      judged(1, "ann", "bob"),
      { type: "folded", work: 2 },
      { type: "failed", work: 3, reason: "TIMEOUT", message: "no answer", retry: "soon" },
      arrived,
      judged(4),
      { type: "timer", timer: "retry", key: "tiny-1+0" },
    ],
    [
      opening,
      "fold tiny-1+0: ann bob",
      "upload tiny-1+0",
      "retry tiny-1+0 in 1000",
      "judge tiny-1",
      "",
      "upload tiny-1+0",
    ],
  ],
  [
    "a commit of a round that it does not know makes it ask",
    [reply(), arrived, reply(siteRound(["ann"]))],
    ["beat in 500", "heartbeat", opening],
  ],
  [
    "a new deadline is a new cut-off",
    [reply(siteRound(["ann"])), judged(1), beatTimer, reply(siteRound(["ann"], { deadlineAtMs: 200_000 }))],
    [opening, "", "heartbeat", "cutOff tiny-1 in 160000, beat in 500"],
  ],
  [
    "without an answer it asks again, ever less often",
    [{ type: "heartbeatFailed" }, beatTimer, { type: "heartbeatFailed" }],
    ["beat in 1000", "heartbeat", "beat in 2000"],
  ],
  [
    "a nudge reaches the members, and is answered by a heartbeat",
    [reply(), { type: "nudged" }],
    ["beat in 500", "nudgeMembers, heartbeat"],
  ],
  [
    "it stops when its work has ended",
    [reply(siteRound(["ann"])), { type: "stop" }, { type: "aborted", work: 1 }],
    [opening, "abort", "exit"],
  ],
];
for (const [what, events, expected] of traces) {
  test(what, (t) => {
    t.deepEqual(play(events).traced, expected);
  });
}

test("why a round is not folded is told until it is", (t) => {
  const statuses = (...more: SiteEvent[]) => {
    const events: SiteEvent[] = [
      reply(siteRound(["ann"])),
      judged(1, "ann"),
      { type: "failed", work: 2, reason: "DiskLow", message: "free space there", retry: "later" },
      { type: "timer", timer: "retry", key: ROUND },
    ];
    return siteStatuses(play([...events, ...more]).state);
  };
  t.like(statuses(), [{ round: ROUND, phase: "Failed", reasons: ["DiskLow: free space there"] }]);
  t.deepEqual(statuses({ type: "folded", work: 3 }), []);
});

test("a restart goes on with what is spooled, and folds nobody anew whose update is on its way", (t) => {
  const rest = { round: ROUND, failures: 0, waiting: false };
  const updates: SiteUpdate[] = [
    { ...rest, key: "tiny-1+0", members: ["ann"], phase: "committed", commitSent: true, commitSeq: 9 },
    { ...rest, key: "tiny-1+1", members: ["bob"], phase: "spooled", commitSent: false, commitSeq: 0 },
  ];
  const { traced } = play(
    [
      { type: "uploaded", work: 1, commitSeq: 10 },
      reply(siteRound(["ann", "bob", "cyd"], { judgedSeq: 8 })),
      judged(2, "ann", "bob", "cyd"),
    ],
    updates,
  );
  t.deepEqual(traced, ["", opening, "fold tiny-1+2: cyd"]);
});

test("the cut-off leaves a share of the time, within bounds", (t) => {
  t.is(cutOffMs(100_000, 0), 80_000);
  t.is(cutOffMs(3_000, 0), 2_000, "a second at least");
  t.is(cutOffMs(500, 0), 0);
  t.is(cutOffMs(0, 500), 0, "a deadline that has passed");
  t.is(cutOffMs(10_000_000, 0), 9_700_000, "five minutes at most");
});

test("whatever dies and fails in whatever order, every committed device is counted, and once", (t) => {
  const members = ["ann", "bob", "cyd"];
  const action = fc.oneof(
    { weight: 6, arbitrary: fc.constant("work") },
    { weight: 2, arbitrary: fc.constant("answer") },
    { weight: 1, arbitrary: fc.constantFrom("judge", "cut", "retry", "fail", "crash") },
    { weight: 1, arbitrary: fc.constantFrom("site 0", "site 1", "site 2", "direct 0", "direct 1") },
  );
  fc.assert(
    fc.property(fc.array(action, { maxLength: 60 }), fc.boolean(), (actions, remembers) => {
      const world = new SiteWorld(members);
      world.remembers = remembers;
      for (const text of actions) {
        const [what, index] = text.split(" ");
        const device = members[Number(index)] ?? "";
        if (what === "site") world.commitAtSite(device);
        else if (what === "direct") world.commitDirectly(device);
        else world[what as "work" | "answer" | "judge" | "cut" | "retry" | "fail" | "crash"]();
      }
      // From here on nothing fails: everybody who has not committed yet does.
      for (const device of members) world.commitAtSite(device);
      for (let i = 0; i < 40; i++) {
        world.cut();
        world.retry();
        for (let piece = 0; piece < 8; piece++) world.work();
        world.judge();
        world.answer();
      }
      t.deepEqual(
        [...world.counted].sort(),
        members.map((device) => [device, 1]),
      );
      t.is(world.state.rounds.size, 0);
    }),
    { numRuns: 500 },
  );
});
