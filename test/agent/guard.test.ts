import test from "ava";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { DataPolicy } from "#proto/shoal/v1/device.js";
import { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { Datasets } from "#agent/data/datasets.js";
import type { DataSource } from "#agent/data/source.js";
import { guardTask } from "#agent/guard.js";
import { parsePolicy } from "#agent/policy-file.js";
import { makeTask } from "./support/tasks.js";

const NOON = Date.UTC(2026, 5, 1, 12, 30);
const facts = { roundsToday: 0, nowMs: NOON };
const everything = DataPolicy.fromPartial({});

test("a task is judged by every line of the policy, and every objection is a reason", (t) => {
  const policy = DataPolicy.fromPartial({
    purposes: ["care"],
    modelFamilies: ["llama"],
    maxRoundsPerDay: 2,
    minCohort: 5,
    startMinute: 22 * 60,
    endMinute: 6 * 60,
  });
  const guarded = guardTask(policy, ["notes"], makeTask("a-1"), { roundsToday: 2, nowMs: NOON });
  t.false(guarded.allowed);
  t.is(guarded.allowed ? 0 : guarded.reasons.length, 5);
  const night = { roundsToday: 1, nowMs: Date.UTC(2026, 5, 1, 23, 0) };
  const wide = { ...policy, purposes: ["research"], modelFamilies: [], minCohort: 4 };
  t.like(guardTask(wide, ["notes"], makeTask("a-1"), night), {
    allowed: true,
    permit: { round: "a-1", dataset: "notes" },
  });
});

test("a missing dataset and an incomplete task are refused with the remedy", (t) => {
  const guarded = guardTask(everything, ["notes"], makeTask("a-1", { dataset: "mail" }), facts);
  t.deepEqual(guarded, {
    allowed: false,
    reasons: ['this device has no dataset "mail"; start its agent with --dataset mail=FOLDER'],
  });
  t.false(guardTask(everything, ["notes"], AssignedTask.fromPartial({}), facts).allowed);
});

test("no file is opened without a permit", async (t) => {
  const opens: string[] = [];
  const source: DataSource = {
    folder: "data",
    list: () => Promise.resolve([{ name: "a.txt", sizeBytes: 5, modifiedMs: 1 }]),
    open: (name) => {
      opens.push(name);
      return Promise.resolve(new TextEncoder().encode("hello"));
    },
  };
  const datasets = new Datasets(new Map([["notes", source]]), new MemoryLog());
  const tokenizer = TokenizerSpec.fromPartial({ kind: "bytes" });
  const options = { tokenizer, tokenizerBlob: undefined, heldOutFraction: 0 };
  const refused = guardTask(DataPolicy.fromPartial({ purposes: ["care"] }), datasets.names, makeTask("a-1"), facts);
  t.false(refused.allowed);
  t.deepEqual(opens, []);
  const guarded = guardTask(everything, datasets.names, makeTask("a-1"), facts);
  t.deepEqual(opens, []);
  if (!guarded.allowed) return t.fail("refused");
  const read = await datasets.read(guarded.permit, options);
  t.true(read.ok);
  t.deepEqual(opens, ["a.txt"]);
  await datasets.read(guarded.permit, options);
  t.deepEqual(opens, ["a.txt"], "an unchanged shard is not read again");
});

test("a policy file is read field by field", (t) => {
  const text =
    "purposes: [research, care]\nmodelFamilies: [gpt2]\nmaxRoundsPerDay: 3\nminCohort: 2\nhours: 22:00-06:30\n";
  t.deepEqual(parsePolicy(text), {
    ok: true,
    policy: {
      purposes: ["research", "care"],
      modelFamilies: ["gpt2"],
      maxRoundsPerDay: 3,
      minCohort: 2,
      startMinute: 1320,
      endMinute: 390,
    },
  });
  t.like(parsePolicy("startMinute: 60\nendMinute: 120\n"), { ok: true, policy: { startMinute: 60, endMinute: 120 } });
  t.deepEqual(parsePolicy("# nothing\n"), { ok: true, policy: everything });
});

for (const [name, text, expected] of [
  ["an unknown field", "purpose: [research]\n", /^purpose \(\["research"\]\) is not known; the fields are purposes, /],
  ["an inherited name", "toString: 1\n", /^toString \(1\) is not known/],
  ["a wrong type", "minCohort: many\n", /^minCohort \("many"\) must be a whole number from 0 to/],
  ["a negative number", "maxRoundsPerDay: -1\n", /must be a whole number/],
  ["a name that is no list", "purposes: research\n", /must be a list of names/],
  ["wrong hours", "hours: 25:00-06:00\n", /must be a span of UTC hours/],
  ["an empty span", "hours: 06:00-06:00\n", /begins and ends at the same minute/],
  ["no purpose", "purposes: []\n", /^purposes .* is empty; leave it out to allow all/],
  ["no model family", "modelFamilies: []\n", /^modelFamilies .* is empty; leave it out to allow all/],
  ["no round a day", "maxRoundsPerDay: 0\n", /^maxRoundsPerDay .* leave it out to allow all/],
  ["equal minutes", "startMinute: 60\nendMinute: 60\n", /are equal; leave it out to allow all/],
  ["half a span", "startMinute: 5\n", /belong together/],
  ["two spans", "hours: 22:00-06:00\nstartMinute: 5\nendMinute: 6\n", /keep one of them/],
  ["a field given twice", "minCohort: 1\nminCohort: 2\n", /not valid YAML/],
  ["broken YAML", "purposes: [\n", /not valid YAML/],
  ["a list", "- research\n", /must be a mapping/],
] as const) {
  test(`a policy file with ${name} is refused`, (t) => {
    const parsed = parsePolicy(text);
    t.false(parsed.ok);
    if (!parsed.ok) t.regex(parsed.problems.join("\n"), expected);
  });
}
