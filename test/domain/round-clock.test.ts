import test from "ava";
import fc from "fast-check";
import { setCondition } from "#common/domain/condition.js";
import { newRoundStatus } from "#common/domain/round.js";
import { CLOCK_SKEW_MS, pauseBeforePlanMs } from "#common/domain/round-clock.js";

const lostAt = (atMs: number, attempt: number) => ({
  ...newRoundStatus(),
  attempt,
  conditions: setCondition(
    [],
    { type: "Planned", status: false, reason: "DevicesLost", message: "", generation: 1 },
    atMs,
  ),
});

test("each further lost attempt is planned again later, up to a minute", (t) => {
  const pauses = [1, 2, 3, 6, 7, 50].map((attempt) => pauseBeforePlanMs(lostAt(5_000, attempt), 5_000));
  t.deepEqual(pauses, [1_000, 2_000, 4_000, 32_000, 60_000, 60_000]);
  t.is(pauseBeforePlanMs(lostAt(5_000, 3), 7_000), 2_000);
  t.is(pauseBeforePlanMs(lostAt(5_000, 3), 60_000), 0);
});

test("a first plan is not put off", (t) => {
  t.is(pauseBeforePlanMs(newRoundStatus(), 0), 0);
  t.is(pauseBeforePlanMs(lostAt(5_000, 0), 5_000), 0);
});

test("a loss written by a clock that ran ahead by minutes puts nothing off, one by seconds does", (t) => {
  t.is(pauseBeforePlanMs(lostAt(1_080_000, 1), 0), 0);
  t.is(pauseBeforePlanMs(lostAt(5_000, 1), 0), 6_000);
});

test("whatever the clocks say, no pause is longer than a minute and what clocks may differ by", (t) => {
  fc.assert(
    fc.property(fc.nat(2 ** 45), fc.nat(100), fc.nat(2 ** 45), (lostAtMs, attempt, nowMs) => {
      const pauseMs = pauseBeforePlanMs(lostAt(lostAtMs, attempt), nowMs);
      return pauseMs >= 0 && pauseMs <= 60_000 + CLOCK_SKEW_MS;
    }),
  );
  t.pass();
});
