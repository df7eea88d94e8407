import test from "ava";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { storeSource } from "#common/runtime/source.js";
import { Round } from "#proto/shoal/v1/round.js";
import { roundKeys } from "#services/aggregator/watched-rounds.js";

const round = (job: string, number: number, phase: string): Round =>
  Round.fromPartial({ metadata: newMeta(`${job}-${number}`), spec: { job, number }, status: { phase } });

/** Keys of a resync, after everything was seen once as at the start of a service. */
async function resynced(store: MemoryResourceStore, keysOf: ReturnType<typeof roundKeys>): Promise<string[]> {
  const source = storeSource(store, "Round", keysOf);
  await source.all?.();
  return ((await source.all?.()) ?? []).sort();
}

test("a resync looks at open rounds and at the newest closed ones only", async (t) => {
  const store = new MemoryResourceStore();
  for (let n = 1; n <= 40; n++) await store.create("Round", round("tale", n, n === 7 ? "Aggregating" : "Completed"));
  await store.create("Round", round("tale", 41, "Training"));
  await store.create("Round", round("other", 1, "Failed"));
  t.deepEqual(await resynced(store, roundKeys(0)), ["other-1", "tale-38", "tale-39", "tale-40", "tale-41", "tale-7"]);
  t.is((await resynced(store, roundKeys(10))).length, 13);
});

test("a job that is applied again under its name counts from one", async (t) => {
  const store = new MemoryResourceStore();
  const keysOf = roundKeys(3);
  await store.create("Round", round("tale", 40, "Completed"));
  t.deepEqual(await resynced(store, keysOf), ["tale-40"]);
  await store.delete("Round", "tale-40");
  t.deepEqual(keysOf("tale-40", undefined), []);
  await store.create("Round", round("tale", 1, "Completed"));
  t.deepEqual(await resynced(store, keysOf), ["tale-1"]);
});
