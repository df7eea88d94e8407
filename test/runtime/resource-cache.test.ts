import test from "ava";
import fc from "fast-check";
import { Lease } from "#proto/shoal/v1/device.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { ResourceCache } from "#common/runtime/resource-cache.js";

const lease = (name: string): Lease => Lease.fromPartial({ metadata: newMeta(name) });
const namesOf = ({ items }: { items: Lease[] }): string[] => items.map(({ metadata }) => metadata?.name ?? "");

/** A store that counts how often it is listed, and a cache of it. */
function world() {
  const clock = new ManualClock(1_000_000);
  const store = new MemoryResourceStore(clock);
  let lists = 0;
  const list = store.list.bind(store);
  store.list = (...args) => {
    lists += 1;
    return list(...args);
  };
  return { clock, store, cache: new ResourceCache(store, clock), lists: () => lists };
}

/** Follows the cache's watch until it is synced, then takes event by event. */
async function synced(cache: ResourceCache, signal: AbortSignal) {
  const events = cache.watch("Lease", { signal });
  for (;;) {
    const next = await events.next();
    if (next.done === true || next.value.type === "synced") return events;
  }
}

test("what is not watched, or not known whole, is read from the store", async (t) => {
  const { store, cache, lists } = world();
  const stop = new AbortController();
  await store.create("Lease", lease("ann"));
  t.deepEqual(namesOf(await cache.list("Lease")), ["ann"]);
  t.is(lists(), 1);
  const events = cache.watch("Lease", { signal: stop.signal });
  await events.next();
  await cache.list("Lease");
  t.is(lists(), 2, "one event is not everything");
  await events.next();
  await cache.list("Lease");
  t.is(lists(), 2, "synced");
  await cache.list("Device");
  t.is(lists(), 3, "another kind");
  await events.return();
  await cache.list("Lease");
  t.is(lists(), 4, "the watch has ended");
});

test("an event is remembered before it is told, in order of name", async (t) => {
  const { store, cache, lists } = world();
  const stop = new AbortController();
  await store.create("Lease", lease("bob"));
  const events = await synced(cache, stop.signal);
  await store.create("Lease", lease("ann"));
  await store.create("Lease", lease("cyd"));
  await store.delete("Lease", "bob");
  for (const expected of [
    ["ann", "bob"],
    ["ann", "bob", "cyd"],
    ["ann", "cyd"],
  ]) {
    await events.next();
    t.deepEqual(namesOf(await cache.list("Lease")), expected);
  }
  const stored = await store.get("Lease", "cyd");
  if (stored === undefined) throw new Error("no lease");
  await store.update("Lease", { ...stored, renewedAtMs: 5 });
  await events.next();
  t.deepEqual(
    (await cache.list("Lease")).items.map(({ renewedAtMs }) => renewedAtMs),
    [0, 5],
  );
  t.is(lists(), 0);
  stop.abort();
});

test("after five seconds without an event the store is asked, until one comes", async (t) => {
  const { clock, store, cache, lists } = world();
  const stop = new AbortController();
  const events = await synced(cache, stop.signal);
  await clock.advance(5_000);
  await cache.list("Lease");
  t.is(lists(), 0);
  await clock.advance(1);
  await cache.list("Lease");
  t.is(lists(), 1);
  await store.create("Lease", lease("ann"));
  await events.next();
  t.deepEqual(namesOf(await cache.list("Lease")), ["ann"]);
  t.is(lists(), 1);
  stop.abort();
});

test("whatever is written between and during watches, a synced cache lists what the store lists", async (t) => {
  const step = fc.oneof(
    fc.record({ op: fc.constant("put" as const), name: fc.constantFrom("a", "b", "c", "d") }),
    fc.record({ op: fc.constant("delete" as const), name: fc.constantFrom("a", "b", "c", "d") }),
    fc.record({ op: fc.constant("rewatch" as const), name: fc.constant("") }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
      const { store, cache, lists } = world();
      let stop = new AbortController();
      let events = await synced(cache, stop.signal);
      for (const { op, name } of steps) {
        const stored = op === "rewatch" ? undefined : await store.get("Lease", name);
        if (op === "put" && stored === undefined) await store.create("Lease", lease(name));
        else if (op === "put" && stored !== undefined)
          await store.update("Lease", { ...stored, renewedAtMs: stored.renewedAtMs + 1 });
        else if (op === "delete") await store.delete("Lease", name);
        if (op !== "rewatch") continue;
        stop.abort();
        await events.return();
        stop = new AbortController();
        events = await synced(cache, stop.signal);
      }
      // Changes of one resource may come as the last one only: told is all when the last write is.
      await store.create("Lease", lease("last"));
      for (let told = ""; told !== "last";) {
        const { value } = await events.next();
        if (value?.type === "put") told = value.resource.metadata?.name ?? "";
      }
      const before = lists();
      t.deepEqual((await cache.list("Lease")).items, (await store.list("Lease")).items);
      t.is(lists(), before + 1, "the cache answered by itself");
      stop.abort();
    }),
    { numRuns: 200 },
  );
});
