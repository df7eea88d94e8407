import test from "ava";
import fc from "fast-check";
import { newMeta } from "#common/domain/resources.js";
import { Device } from "#proto/shoal/v1/device.js";
import { BlobRangeRequest } from "#proto/shoal/v1/device_wire.js";
import { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { decideRange, readableBlobs } from "#common/domain/readable.js";
import { devicesToNudge, openTasks, siteRounds } from "#services/registry/assignments.js";

const device = (name: string, draining = false): Device =>
  Device.fromPartial({ metadata: newMeta(name), spec: { draining } });
const ref = (name: string, sizeBytes = 1000): { digest: string; sizeBytes: number } => ({
  digest: `sha256:${name}`,
  sizeBytes,
});
interface Shape {
  phase?: string;
  invited?: string[];
  withdrawn?: string[];
  plannedAtMs?: number;
  awaitsStragglers?: boolean;
}
const round = (
  name: string,
  { phase = "Training", invited = ["a", "b"], withdrawn = [], plannedAtMs = 5, awaitsStragglers = false }: Shape = {},
): Round =>
  Round.fromPartial({
    metadata: newMeta(name),
    spec: { task: { round: name, weights: ref("weights"), evalGraph: ref("eval"), tokenizer: { blob: ref("words") } } },
    status: {
      phase,
      plannedAtMs,
      awaitsStragglers,
      deadlineAtMs: 99,
      assignments: invited.map((invitee) => ({ device: invitee, localSteps: 7, trainGraph: ref(`train-${invitee}`) })),
      withdrawn: withdrawn.map((gone) => ({ device: gone, reasons: ["refused"] })),
    },
  });
const tally = (name: string, devices: string[], accepted = true): Map<string, UpdateTally> =>
  new Map([
    [
      name,
      UpdateTally.fromPartial({
        metadata: newMeta(name),
        verdicts: devices.map((who, i) => ({ commitSeq: i + 1, accepted, manifest: { device: who } })),
      }),
    ],
  ]);
const older = new Map([...tally("j-1", ["a"])].map(([name, of]) => [name, { ...of, roundUid: "older" }]));
const names = (who: Device | undefined, rounds: Round[], tallies = new Map<string, UpdateTally>()): string[] =>
  openTasks(who, rounds, tallies).map(({ task }) => task?.round ?? "");

const CASES: [string, string[], string[]][] = [
  ["an invited device has its task", names(device("a"), [round("j-1")]), ["j-1"]],
  ["a device not invited has none", names(device("c"), [round("j-1")]), []],
  ["a deleted device has none", names(undefined, [round("j-1")]), []],
  ["a draining device has none", names(device("a", true), [round("j-1")]), []],
  ["a withdrawn device has none", names(device("a"), [round("j-1", { withdrawn: ["a"] })]), []],
  ["a device that committed has none", names(device("a"), [round("j-1")], tally("j-1", ["a"])), []],
  ["a commit to an earlier round of the name is none", names(device("a"), [round("j-1")], older), ["j-1"]],
  ["a refused commit is a commit", names(device("a"), [round("j-1")], tally("j-1", ["a"], false)), []],
  ["another's commit is not mine", names(device("a"), [round("j-1")], tally("j-1", ["b"])), ["j-1"]],
  ["a commit to another round is none to this", names(device("a"), [round("j-1")], tally("j-2", ["a"])), ["j-1"]],
  ["a round that aggregates is closed", names(device("a"), [round("j-1", { phase: "Aggregating" })]), []],
  ["a completed round is closed", names(device("a"), [round("j-1", { phase: "Completed" })]), []],
  [
    "a folded round whose updates later rounds take keeps its devices",
    names(device("a"), [round("j-1", { phase: "Completed", awaitsStragglers: true })]),
    ["j-1"],
  ],
  [
    "but not those that committed",
    names(device("a"), [round("j-1", { phase: "Aggregating", awaitsStragglers: true })], tally("j-1", ["a"])),
    [],
  ],
  ["a round planned again keeps its devices", names(device("a"), [round("j-1", { phase: "Planning" })]), ["j-1"]],
  ["a round not planned has no devices", names(device("a"), [round("j-1", { phase: "Planning", invited: [] })]), []],
  [
    "the oldest plan comes first",
    names(device("a"), [round("x-1", { plannedAtMs: 9 }), round("z-1"), round("y-1")]),
    ["y-1", "z-1", "x-1"],
  ],
];
for (const [what, found, wanted] of CASES) {
  test(what, (t) => {
    t.deepEqual(found, wanted);
  });
}

test("a task carries the device's own assignment and the deadline", (t) => {
  const [task] = openTasks(device("b"), [round("j-1")], new Map());
  t.is(task?.assignment?.device, "b");
  t.is(task?.assignment?.localSteps, 7);
  t.is(task?.deadlineAtMs, 99);
});

test("each device of any fleet has exactly the rounds that wait for it", (t) => {
  const who = fc.subarray(["a", "b", "c", "d"]);
  fc.assert(
    fc.property(who, who, who, fc.constantFrom("a", "b", "c", "d"), (invited, withdrawn, committed, name) => {
      const open = names(device(name), [round("j-1", { invited, withdrawn })], tally("j-1", committed));
      const waits = invited.includes(name) && !withdrawn.includes(name) && !committed.includes(name);
      return (open.length === 1) === waits;
    }),
  );
  t.pass();
});

const NUDGES: [string, Round | undefined, Round | undefined, string[]][] = [
  ["a new round", undefined, round("j-1"), ["a", "b"]],
  ["a round that ends", round("j-1"), round("j-1", { phase: "Aggregating" }), ["a", "b"]],
  ["a deleted round", round("j-1"), undefined, ["a", "b"]],
  ["a withdrawal", round("j-1"), round("j-1", { withdrawn: ["b"] }), ["b"]],
  ["nothing new", round("j-1"), round("j-1"), []],
  ["another plan", round("j-1"), round("j-1", { plannedAtMs: 6, invited: ["a", "c"] }), ["a", "c", "b"]],
];
for (const [what, before, after, wanted] of NUDGES) {
  test(`${what} nudges ${wanted.join(", ") || "nobody"}`, (t) => {
    t.deepEqual(devicesToNudge(before, after), wanted);
  });
}

const tasks = openTasks(device("a"), [round("j-1")], new Map());

test("a device may read what its tasks name and nothing else", (t) => {
  t.deepEqual([...readableBlobs(tasks).keys()].sort(), [
    "sha256:eval",
    "sha256:train-a",
    "sha256:weights",
    "sha256:words",
  ]);
});

const RANGES: [string, Partial<BlobRangeRequest>, string | number][] = [
  ["the beginning", { offset: 0, length: 100 }, 100],
  ["more than a piece", { offset: 0, length: 5000 }, 600],
  ["the end", { offset: 900, length: 500 }, 100],
  ["beyond nothing", { offset: 1000, length: 1 }, 0],
  ["beyond the end", { offset: 1001, length: 1 }, "BadRange"],
  ["a negative offset", { offset: -1, length: 1 }, "BadRange"],
  ["a fraction", { offset: 0.5, length: 1 }, "BadRange"],
  ["no length", { offset: 0, length: 0 }, "BadRange"],
  ["a negative length", { offset: 0, length: -4 }, "BadRange"],
  ["another device's graph", { digest: "sha256:train-b", offset: 0, length: 1 }, "NotAssigned"],
  ["no digest", { digest: "", offset: 0, length: 1 }, "NotAssigned"],
];
for (const [what, fields, wanted] of RANGES) {
  test(`reading ${what} gives ${wanted}`, (t) => {
    const request = BlobRangeRequest.fromPartial({ digest: "sha256:weights", ...fields });
    const verdict = decideRange(request, tasks, 600);
    t.is(verdict.ok ? verdict.length : verdict.refusal.reason, wanted);
  });
}

test("a gateway is told of the devices and verdicts of the round, not of an earlier one of its name", (t) => {
  const open = round("j-1");
  for (const assignment of open.status?.assignments ?? []) assignment.site = "pier";
  const seen = (roundUid: string): unknown[] => {
    const tallies = new Map([...tally("j-1", ["a"])].map(([name, of]) => [name, { ...of, roundUid, lastSeq: 5 }]));
    const [found] = siteRounds("pier", [open], tallies);
    return [found?.judgedSeq, found?.assignments.map(({ device: name }) => name)];
  };
  t.deepEqual(seen(""), [5, ["b"]]);
  t.deepEqual(seen("older"), [0, ["a", "b"]]);
});
