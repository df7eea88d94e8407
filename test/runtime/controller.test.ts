import test, { type ExecutionContext } from "ava";
import { ManualClock, settle } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryWorkQueue } from "#common/adapters/memory/work-queue.js";
import { newMeta } from "#common/domain/resources.js";
import type { WorkQueue } from "#common/ports/work-queue.js";
import { Controller, type ControllerOptions, type Outcome } from "#common/runtime/controller.js";
import { storeSource, triggerSource } from "#common/runtime/source.js";
import { Lease } from "#proto/shoal/v1/device.js";

const DONE: Outcome = { type: "done" };

function setUp(t: ExecutionContext, over: (world: World) => Partial<ControllerOptions>) {
  const clock = new ManualClock();
  const world: World = { clock, store: new MemoryResourceStore(clock), queue: new MemoryWorkQueue(clock), seen: [] };
  const log = new MemoryLog();
  const metrics = new MemoryMetrics();
  const stop = new AbortController();
  const controller = new Controller({
    name: "c",
    sources: [storeSource(world.store, "Lease")],
    reconcile: (key) => {
      world.seen.push(key);
      return Promise.resolve(DONE);
    },
    queue: world.queue,
    clock,
    log,
    metrics,
    random: () => 0.5,
    resyncMs: 30_000,
    ...over(world),
  });
  const running = controller.run(stop.signal);
  t.teardown(async () => {
    stop.abort();
    await running;
  });
  return { ...world, log, metrics, stop, running, controller };
}

interface World {
  clock: ManualClock;
  store: MemoryResourceStore;
  queue: MemoryWorkQueue;
  seen: string[];
}

const lease = (name: string): Lease => Lease.fromPartial({ metadata: newMeta(name) });

test("what exists and what changes is reconciled", async (t) => {
  const { store, clock, seen, metrics } = setUp(t, () => ({}));
  await store.create("Lease", lease("a"));
  await clock.advance(0);
  const found = await store.get("Lease", "a");
  t.truthy(found && (await store.update("Lease", { ...found, renewedAtMs: 5 })));
  await clock.advance(0);
  await store.delete("Lease", "a");
  await clock.advance(0);
  t.deepEqual(seen, ["a", "a", "a"]);
  t.is(metrics.value("shoal_reconciles_total", { controller: "c", outcome: "done" }), 3);
});

test("a failure is tried again later and later, and forgotten after a success", async (t) => {
  const at: number[] = [];
  const { store, clock, metrics } = setUp(t, (world) => ({
    sources: [triggerSource("store", (signal) => storeSource(world.store, "Lease").keys(signal))],
    backoff: { baseMs: 100, maxMs: 1000 },
    reconcile: () => {
      at.push(world.clock.nowMs());
      return at.length < 6 ? Promise.reject(new Error("not yet")) : Promise.resolve(DONE);
    },
  }));
  await store.create("Lease", lease("a"));
  await clock.advance(10_000);
  const gaps = at.slice(1).map((ms, index) => ms - (at[index] ?? 0));
  t.deepEqual(gaps, [75, 150, 300, 600, 750]);
  t.is(metrics.value("shoal_reconciles_total", { controller: "c", outcome: "error" }), 5);
});

test("a requeue comes at its time", async (t) => {
  const at: number[] = [];
  const { store, clock } = setUp(t, (world) => ({
    reconcile: () => {
      at.push(world.clock.nowMs());
      return Promise.resolve(at.length < 3 ? { type: "requeue", afterMs: 4000 } : DONE);
    },
  }));
  const startMs = clock.nowMs();
  await store.create("Lease", lease("a"));
  await clock.advance(20_000);
  t.deepEqual(
    at.map((ms) => ms - startMs),
    [0, 4000, 8000],
  );
});

test("a key that is asked for often while others are added is added once more, not as often", async (t) => {
  const added: string[] = [];
  const { clock, seen } = setUp(t, ({ queue, clock: time }) => ({
    queue: {
      add: async (key, options) => {
        await time.sleep(10);
        added.push(key);
        await queue.add(key, options);
      },
      run: (handler, options) => queue.run(handler, options),
      close: () => queue.close(),
    },
    sources: [
      triggerSource("burst", async function* (signal) {
        for (let i = 0; i < 100; i += 1) {
          yield "a";
          if (i === 50) yield "b";
          if (i === 98) await time.sleep(100);
        }
        await time.sleep(1e9, signal);
      }),
    ],
  }));
  await clock.advance(50);
  t.deepEqual(added, ["a", "a", "b"]);
  await clock.advance(200);
  // The last one came when all had been added.
  t.deepEqual(added, ["a", "a", "b", "a"]);
  t.true(seen.filter((key) => key === "a").length >= 2);
});

test("a key that comes just as the one before it has been added is added, at whatever step of the two loops", async (t) => {
  for (let steps = 0; steps < 24; steps += 1) {
    const added: string[] = [];
    const { clock } = setUp(t, ({ queue, clock: time }) => {
      let open = (): void => undefined;
      const gate = new Promise<void>((resolve) => (open = resolve));
      return {
        queue: {
          add: async (key) => {
            if (key === "a") await gate;
            added.push(key);
          },
          run: (handler, options) => queue.run(handler, options),
          close: () => queue.close(),
        },
        sources: [
          triggerSource("two", async function* (signal) {
            yield "a";
            open();
            for (let step = 0; step < steps; step += 1) await Promise.resolve();
            yield "b";
            await time.sleep(1e9, signal);
          }),
        ],
      };
    });
    await clock.advance(10);
    t.deepEqual(added, ["a", "b"], `after ${steps} steps`);
  }
});

test("a resync adds every key again, whatever the queue lost", async (t) => {
  const { store, clock, seen, queue } = setUp(t, () => ({}));
  for (const name of ["a", "b"]) await store.create("Lease", lease(name));
  await clock.advance(1000);
  queue.wipe();
  await clock.advance(30_000);
  t.deepEqual(seen, ["a", "b", "a", "b"]);
});

test("keys a failing queue did not take are offered again, at their time", async (t) => {
  let down = true;
  const { store, clock, seen, log, controller } = setUp(t, ({ queue }) => {
    const flaky: WorkQueue = {
      add: (key, options) =>
        down
          ? Promise.reject(Object.assign(new Error("gone"), { code: "QUEUE_UNAVAILABLE" }))
          : queue.add(key, options),
      run: (handler, options) => queue.run(handler, options),
      close: () => queue.close(),
    };
    return { queue: flaky, resyncMs: 1_000_000 };
  });
  for (const name of ["a", "b"]) await store.create("Lease", lease(name));
  await clock.advance(0);
  await controller.enqueue("late", 60_000);
  await clock.advance(5000);
  t.deepEqual(seen, []);
  down = false;
  await clock.advance(3000);
  t.deepEqual([...seen].sort(), ["a", "b"]);
  await clock.advance(60_000);
  t.true(seen.includes("late"));
  t.is(log.lines.filter(({ message }) => message.startsWith("the queue takes no keys")).length, 1);
});

test("a source or queue that fails or ends is started again", async (t) => {
  let starts = 0;
  let runs = 0;
  const { clock, seen } = setUp(t, ({ queue }) => ({
    sources: [
      triggerSource("flaky", async function* () {
        starts += 1;
        await Promise.resolve();
        yield `key-${starts}`;
        throw new Error("the source broke");
      }),
    ],
    queue: {
      add: (key, options) => queue.add(key, options),
      close: () => queue.close(),
      run: (handler, options) => {
        runs += 1;
        return runs < 3 ? Promise.reject(new Error("no Redis")) : queue.run(handler, options);
      },
    },
  }));
  await clock.advance(5000);
  t.true(starts >= 3, String(starts));
  t.is(runs, 3);
  t.true(seen.includes("key-1") && seen.includes("key-3"));
});

test("run ends after the last reconcile, whose signal was aborted", async (t) => {
  let aborted = false;
  const { store, clock, stop, running } = setUp(t, () => ({
    reconcile: (_key, signal) =>
      new Promise((resolve) =>
        signal.addEventListener("abort", () => {
          aborted = true;
          resolve(DONE);
        }),
      ),
  }));
  await store.create("Lease", lease("a"));
  await clock.advance(0);
  stop.abort();
  await running;
  await settle();
  t.true(aborted);
});
