import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { initWeights } from "#common/graph/init.js";
import { parseModelConfig, toHuggingFaceConfig } from "#common/graph/config.js";
import { toBytes } from "#common/tensor/flat.js";
import { Model } from "#proto/shoal/v1/model.js";
import { ModelApi } from "#services/registry/model-api.js";

test("models are read and written one at a time, and one that fails lets the next begin", async (t) => {
  const parsed = parseModelConfig({ family: "gpt2", vocabSize: 9, contextLength: 4, layers: 1, heads: 1, width: 2 });
  if (!parsed.ok) return t.fail();
  const inner = new MemoryBlobStore();
  let [running, most, gets] = [0, 0, 0];
  const blobs = new Proxy(inner, {
    get: (target, key) => {
      const method: unknown = Reflect.get(target, key);
      if (key !== "get") return typeof method === "function" ? (method.bind(target) as unknown) : method;
      return async (digest: string) => {
        most = Math.max(most, ++running);
        await new Promise((resolve) => setImmediate(resolve));
        running--;
        if (++gets === 2) throw new Error("lost");
        return target.get(digest);
      };
    },
  });
  const store = new MemoryResourceStore(new ManualClock(0));
  const weights = await inner.put(toBytes(initWeights(parsed.config, 1)));
  const model = Model.fromPartial({ metadata: newMeta("tiny"), family: "gpt2", weights });
  await store.create("Model", { ...model, config: toHuggingFaceConfig(parsed.config) });
  const api = new ModelApi({ store, blobs, log: new MemoryLog() });
  const all = await Promise.allSettled(
    Array.from({ length: 4 }, () => api.export({ name: "tiny", form: "", seqLen: 0 })),
  );
  t.deepEqual(
    all.map(({ status }) => status),
    ["fulfilled", "rejected", "fulfilled", "fulfilled"],
  );
  t.deepEqual([most, gets], [1, 4]);
});
