import test from "ava";
import { ManualClock, settle } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { Lifecycle } from "#common/runtime/lifecycle.js";

function setUp(boundMs = 10_000) {
  const clock = new ManualClock();
  const log = new MemoryLog();
  return { clock, log, lifecycle: new Lifecycle(log, clock, boundMs), stopped: [] as string[] };
}

test("parts stop in reverse order, once, after the signal", async (t) => {
  const { lifecycle, stopped } = setUp();
  lifecycle.signal.addEventListener("abort", () => stopped.push("signal"));
  for (const name of ["a", "b", "c"])
    lifecycle.onStop(name, async () => {
      await Promise.resolve();
      stopped.push(name);
    });
  t.deepEqual(await Promise.all([lifecycle.stop(), lifecycle.stop()]), [true, true]);
  t.deepEqual(stopped, ["signal", "c", "b", "a"]);
});

test("a part that fails does not keep the others from stopping", async (t) => {
  const { lifecycle, log, stopped } = setUp();
  lifecycle.onStop("a", () => void stopped.push("a"));
  lifecycle.onStop("b", () => Promise.reject(new Error("b fails")));
  t.false(await lifecycle.stop());
  t.deepEqual(stopped, ["a"]);
  t.is(log.lines[0]?.fields["part"], "b");
});

test("a part that hangs is left behind at the bound", async (t) => {
  const { lifecycle, clock, log, stopped } = setUp(10_000);
  lifecycle.onStop("a", () => void stopped.push("a"));
  lifecycle.onStop("hangs", () => new Promise<void>(() => undefined));
  const stopping = lifecycle.stop();
  await clock.advance(9000);
  t.deepEqual(stopped, []);
  await clock.advance(2000);
  await settle();
  t.false(await stopping);
  t.deepEqual(stopped, ["a"]);
  t.true(log.lines.some(({ message }) => message === "a part did not stop in time"));
});
