import type { TestFn } from "ava";
import { newMeta } from "#common/domain/resources.js";
import type { ResourceStore, StoreEvent } from "#common/ports/resource-store.js";
import { Lease } from "#proto/shoal/v1/device.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";

const lease = (name: string, renewedAtMs = 1): Lease => Lease.fromPartial({ metadata: newMeta(name), renewedAtMs });

/** A lease as stored; fails if the write was refused. */
async function created(store: ResourceStore, name: string): Promise<Lease> {
  const written = await store.create("Lease", lease(name));
  if (!written.ok) throw new Error(`create was refused: ${written.reason}`);
  return written.resource;
}

/** Collects events until `enough` says so or 10 s have passed. */
async function collect(
  events: AsyncIterable<StoreEvent<"Lease">>,
  stop: AbortController,
  enough: (seen: StoreEvent<"Lease">[]) => boolean,
): Promise<StoreEvent<"Lease">[]> {
  const seen: StoreEvent<"Lease">[] = [];
  const timer = setTimeout(() => stop.abort(), 10_000);
  for await (const event of events) {
    seen.push(event);
    if (enough(seen)) break;
  }
  clearTimeout(timer);
  stop.abort();
  return seen;
}

const shown = (events: StoreEvent<"Lease">[]): string[] =>
  events.map((event) =>
    event.type === "put"
      ? `put ${event.resource.metadata?.name ?? ""} ${event.resource.renewedAtMs}`
      : event.type === "delete"
        ? `delete ${event.name}`
        : "synced",
  );

/** What every ResourceStore does. Each test works on names of its own, so one store may serve all of them. */
export function resourceStoreConformance(test: TestFn, label: string, open: () => ResourceStore): void {
  const title = (what: string): string => `${label}: ${what}`;

  test(title("create fills identity and version, and refuses a taken name"), async (t) => {
    const store = open();
    const first = await created(store, "a-create");
    t.truthy(first.metadata?.uid);
    t.true((first.metadata?.createdAtMs ?? 0) > 0);
    t.is(first.metadata?.generation, 1);
    t.regex(first.metadata?.resourceVersion ?? "", /^[1-9]\d*$/);
    t.deepEqual(await store.create("Lease", lease("a-create")), { ok: false, reason: "Exists" });
    t.deepEqual(await store.get("Lease", "a-create"), first);
    t.is(await store.get("Device", "a-create"), undefined);
  });

  test(title("what no message holds is refused with a code and a remedy, and changes nothing"), async (t) => {
    const store = open();
    const { metadata } = await created(store, "a-large");
    const labels = { note: "x".repeat(1024 ** 2) };
    const large = Lease.fromPartial({ metadata: { ...metadata, labels } });
    const refused = await t.throwsAsync(store.update("Lease", large), { code: "RESOURCE_TOO_LARGE" });
    t.regex(refused.message, /Lease "a-large" has \d{7} bytes and the store takes \d{7}: make it smaller/);
    const other = Lease.fromPartial({ metadata: { ...newMeta("b-large"), labels } });
    await t.throwsAsync(store.create("Lease", other), { code: "RESOURCE_TOO_LARGE" });
    t.is(await store.get("Lease", "b-large"), undefined);
    t.is((await store.get("Lease", "a-large"))?.metadata?.resourceVersion, metadata?.resourceVersion);
  });

  test(title("a resource with nested values comes back as it was"), async (t) => {
    const store = open();
    const job = TrainingJob.fromPartial({
      metadata: newMeta("a-job", { team: "x" }),
      spec: { model: { family: "gpt2", config: { n_layer: 2, layer_norm_epsilon: 1e-5 } }, seed: 4_000_000_000 },
    });
    const written = await store.create("TrainingJob", job);
    t.true(written.ok);
    const stored = await store.get("TrainingJob", "a-job");
    t.deepEqual(stored?.spec, job.spec);
    t.deepEqual(stored?.metadata?.labels, { team: "x" });
  });

  test(title("of racing updates exactly one wins"), async (t) => {
    const store = open();
    const start = await created(store, "a-race");
    const racers = await Promise.all(
      Array.from({ length: 10 }, (_, index) => store.update("Lease", { ...start, renewedAtMs: 100 + index })),
    );
    const winners = racers.filter((written) => written.ok);
    t.is(winners.length, 1);
    t.true(racers.every((written) => written.ok || written.reason === "Conflict"));
    t.deepEqual(await store.get("Lease", "a-race"), winners[0]?.resource);
  });

  test(title("of racing creates exactly one wins"), async (t) => {
    const store = open();
    const racers = await Promise.all(Array.from({ length: 10 }, () => store.create("Lease", lease("a-create-race"))));
    t.is(racers.filter((written) => written.ok).length, 1);
    t.true(racers.every((written) => written.ok || written.reason === "Exists"));
  });

  test(title("update of what is absent, stale or unversioned is refused"), async (t) => {
    const store = open();
    t.deepEqual(await store.update("Lease", lease("a-absent")), { ok: false, reason: "NotFound" });
    const first = await created(store, "a-stale");
    t.deepEqual(await store.update("Lease", lease("a-stale")), { ok: false, reason: "Conflict" });
    t.true((await store.update("Lease", { ...first, renewedAtMs: 2 })).ok);
    t.deepEqual(await store.update("Lease", { ...first, renewedAtMs: 3 }), { ok: false, reason: "Conflict" });
  });

  test(title("delete honours versions and the name can be used again"), async (t) => {
    const store = open();
    const first = await created(store, "a-delete");
    const version = first.metadata?.resourceVersion ?? "";
    t.true((await store.update("Lease", { ...first, renewedAtMs: 2 })).ok);
    t.deepEqual(await store.delete("Lease", "a-delete", version), { ok: false, reason: "Conflict" });
    t.deepEqual(await store.delete("Lease", "a-delete"), { ok: true });
    t.deepEqual(await store.delete("Lease", "a-delete"), { ok: false, reason: "NotFound" });
    t.is(await store.get("Lease", "a-delete"), undefined);
    const second = await created(store, "a-delete");
    t.not(second.metadata?.uid, first.metadata?.uid);
    t.true(Number(second.metadata?.resourceVersion) > Number(version));
  });

  test(title("list is ordered, filtered by prefix and labels, and without deleted ones"), async (t) => {
    const store = open();
    for (const name of ["a-list-b", "a-list-c", "a-list-a"]) await created(store, name);
    await store.create("Lease", Lease.fromPartial({ metadata: newMeta("a-list-z", { site: "north" }) }));
    await store.delete("Lease", "a-list-c");
    const names = async (options: { prefix: string; labels?: Record<string, string> }): Promise<unknown[]> =>
      (await store.list("Lease", options)).items.map((item) => item.metadata?.name);
    t.deepEqual(await names({ prefix: "a-list-" }), ["a-list-a", "a-list-b", "a-list-z"]);
    t.deepEqual(await names({ prefix: "a-list-", labels: { site: "north" } }), ["a-list-z"]);
  });

  test(title("a watch sends what exists, synced, then changes"), async (t) => {
    const store = open();
    await created(store, "a-watch");
    const stop = new AbortController();
    const watching = collect(store.watch("Lease", { name: "a-watch", signal: stop.signal }), stop, (seen) => {
      if (seen.at(-1)?.type === "synced")
        void store
          .get("Lease", "a-watch")
          .then((found) => found && store.update("Lease", { ...found, renewedAtMs: 7 }))
          .then(() => store.delete("Lease", "a-watch"));
      return seen.at(-1)?.type === "delete";
    });
    const seen = shown(await watching);
    // The update may be overtaken by the deletion.
    t.deepEqual(seen.slice(0, 2), ["put a-watch 1", "synced"]);
    t.is(seen.at(-1), "delete a-watch");
  });

  test(title("a watch of nothing is synced at once"), async (t) => {
    const stop = new AbortController();
    const seen = await collect(open().watch("Lease", { name: "a-nobody", signal: stop.signal }), stop, () => true);
    t.deepEqual(shown(seen), ["synced"]);
  });

  test(title("a watch resumes after a version, deletions included, without a gap"), async (t) => {
    const store = open();
    const kept = await created(store, "a-resume-1");
    await created(store, "a-resume-2");
    const { version } = await store.list("Lease");
    await store.delete("Lease", "a-resume-2");
    await store.update("Lease", { ...kept, renewedAtMs: 5 });
    const resume = async (name: string): Promise<string[]> => {
      const stop = new AbortController();
      const options = { name, afterVersion: version, signal: stop.signal };
      return shown(await collect(store.watch("Lease", options), stop, (seen) => seen.at(-1)?.type === "synced"));
    };
    t.deepEqual(await resume("a-resume-1"), ["put a-resume-1 5", "synced"]);
    t.deepEqual(await resume("a-resume-2"), ["delete a-resume-2", "synced"]);
  });

  test(title("a watch ends when its signal aborts"), async (t) => {
    const stop = new AbortController();
    const watch = open().watch("Lease", { name: "a-end", signal: stop.signal })[Symbol.asyncIterator]();
    t.is((await watch.next()).done, false);
    const last = watch.next();
    stop.abort();
    t.true((await last).done);
  });

  test(title("a resource without a name is a fault"), async (t) => {
    await t.throwsAsync(async () => open().create("Lease", Lease.fromPartial({})), { code: "BAD_RESOURCE" });
  });
}
