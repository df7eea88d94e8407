import test from "ava";
import fc from "fast-check";
import { DataPolicy } from "#proto/shoal/v1/device.js";
import { evaluatePolicy, minuteOfDay } from "#common/domain/policy.js";

const request = { purpose: "research", modelFamily: "gpt2", cohortSize: 4 };
const facts = { roundsToday: 2, minuteOfDay: 600 };

test("an empty policy allows everything", (t) => {
  t.deepEqual(evaluatePolicy(DataPolicy.fromPartial({}), request, facts), { allowed: true });
});

test("every objection is returned", (t) => {
  const policy = DataPolicy.fromPartial({
    purposes: ["care"],
    modelFamilies: ["llama"],
    maxRoundsPerDay: 2,
    minCohort: 5,
    startMinute: 60,
    endMinute: 300,
  });
  t.deepEqual(evaluatePolicy(policy, request, facts), {
    allowed: false,
    reasons: [
      'purpose "research" is not allowed; allowed are care',
      'model family "gpt2" is not allowed; allowed are llama',
      "has done 2 of 2 rounds a day; free again at 00:00 UTC",
      "cohort of 4 is too small to hide in; it asks for 5",
      "trains only from 01:00 to 05:00 UTC; it is 10:00",
    ],
  });
});

const hours: [number, number, number, boolean][] = [
  [60, 120, 59, false],
  [60, 120, 60, true],
  [60, 120, 119, true],
  [60, 120, 120, false],
  [1320, 360, 1439, true],
  [1320, 360, 0, true],
  [1320, 360, 359, true],
  [1320, 360, 360, false],
  [1320, 360, 1319, false],
  [7, 7, 1000, true],
];
for (const [startMinute, endMinute, minute, allowed] of hours) {
  test(`from ${startMinute} to ${endMinute}, at ${minute}: ${allowed ? "allowed" : "refused"}`, (t) => {
    const policy = DataPolicy.fromPartial({ startMinute, endMinute });
    t.is(evaluatePolicy(policy, request, { ...facts, minuteOfDay: minute }).allowed, allowed);
  });
}

test("hours and their complement share the day", (t) => {
  const minute = fc.integer({ min: 0, max: 1439 });
  fc.assert(
    fc.property(minute, minute, minute, (start, end, now) => {
      fc.pre(start !== end);
      const at = (startMinute: number, endMinute: number): boolean =>
        evaluatePolicy(DataPolicy.fromPartial({ startMinute, endMinute }), request, { ...facts, minuteOfDay: now })
          .allowed;
      return at(start, end) !== at(end, start);
    }),
  );
  t.pass();
});

test("a larger cohort never turns an allowance into a refusal", (t) => {
  const sizes = fc.integer({ min: 0, max: 50 });
  fc.assert(
    fc.property(sizes, sizes, sizes, (minCohort, cohortSize, more) => {
      const policy = DataPolicy.fromPartial({ minCohort });
      const small = evaluatePolicy(policy, { ...request, cohortSize }, facts).allowed;
      const large = evaluatePolicy(policy, { ...request, cohortSize: cohortSize + more }, facts).allowed;
      return small === cohortSize >= minCohort && (!small || large);
    }),
  );
  t.pass();
});

test("minutes of the day", (t) => {
  t.is(minuteOfDay(Date.UTC(2024, 1, 29, 23, 59, 59)), 1439);
  t.is(minuteOfDay(-60_000), 1439);
});
