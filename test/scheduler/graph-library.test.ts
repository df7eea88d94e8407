import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { parseModelConfig } from "#common/graph/config.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";

const parsed = parseModelConfig({ family: "gpt2", vocabSize: 9, contextLength: 4, layers: 1, heads: 1, width: 4 });
const SHAPE = { batch: 1, seqLen: 4 };

test("a remembered graph is not collected under who asks for it, and built again once it is", async (t) => {
  if (!parsed.ok) throw new Error("no model");
  const blobs = new MemoryBlobStore();
  const library = new GraphLibrary(blobs);
  const ref = await library.evaluation(parsed.config, SHAPE, undefined);
  const seen = (await blobs.contents()).blobs[0]?.version ?? 0;
  t.deepEqual(await library.evaluation(parsed.config, SHAPE, undefined), ref);
  t.false(await blobs.collect(ref.digest, seen));
  t.true(await blobs.collect(ref.digest, (await blobs.contents()).blobs[0]?.version ?? 0));
  t.deepEqual(await library.evaluation(parsed.config, SHAPE, undefined), ref);
  t.deepEqual(await blobs.stat(ref.digest), ref);
});
