import test from "ava";
import { attemptPace } from "#common/adapters/nats/attempt-pace.js";
import { ManualClock } from "#common/adapters/memory/clock.js";

test("an attempt is made at once when the wait has passed, and put off by all of it before", async (t) => {
  const clock = new ManualClock(0);
  const delayMs = attemptPace(clock, 500, 250);
  for (let attempt = 0; attempt < 20; attempt += 1) {
    t.is(delayMs(), -Infinity);
    const put = delayMs();
    t.true(put >= 500 && put < 750, String(put));
    await clock.advance(put - 1);
    t.is(delayMs(), put);
    await clock.advance(1);
  }
});
