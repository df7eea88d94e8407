import test from "ava";
import { Round } from "#proto/shoal/v1/round.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { clearRecords, recordShard } from "#services/aggregator/fold-records.js";

const roundOf = (uid: string): Round => Round.fromPartial({ metadata: { ...newMeta("tiny-1"), uid } });

/** A store with a record of shards of these rounds of one name, one each, of which the last has the name. */
async function storeOf(uids: readonly string[]): Promise<MemoryResourceStore> {
  const store = new MemoryResourceStore();
  for (const [index, uid] of uids.entries()) {
    await recordShard(store, roundOf(uid), "fold", { index, squares: 1, elapsedMs: 1 });
  }
  await store.create("Round", roundOf(uids.at(-1) ?? ""));
  return store;
}

/** Clears the records of a round; whose stages went, and whose records stayed. */
async function cleared(uids: readonly string[], uid: string): Promise<{ unstaged: string[]; left: string[] }> {
  const store = await storeOf(uids);
  const unstaged: string[] = [];
  await clearRecords(store, roundOf(uid), (of) => {
    unstaged.push(of);
    return Promise.resolve();
  });
  const { items } = await store.list("FoldShard");
  return { unstaged: unstaged.sort(), left: items.map(({ roundUid }) => roundUid) };
}

test("a round's records go, and those that an earlier one of the name left", async (t) => {
  t.deepEqual(await cleared(["older", "own"], "own"), { unstaged: ["older", "own"], left: [] });
});

test("a replica that was held up leaves the records of the round that has the name by now", async (t) => {
  t.deepEqual(await cleared(["older", "own", "newer"], "own"), { unstaged: ["older", "own"], left: ["newer"] });
});
