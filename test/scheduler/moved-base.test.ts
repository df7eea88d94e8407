import test, { type ExecutionContext } from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { initWeights } from "#common/graph/init.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { toBytes } from "#common/tensor/flat.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import { Model } from "#proto/shoal/v1/model.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { JobController } from "#services/scheduler/job-controller.js";
import { loseBlob } from "#test/support/lost-blob.js";
import { jobOf, NOW, TINY, TINY_CONFIG } from "./world.js";

const JOB = "tuned";
const BASE = "first";

/** A base, a job that trains adapters over it, and a scheduler. */
class World {
  readonly clock = new ManualClock(NOW);
  readonly store = new MemoryResourceStore(this.clock);
  readonly blobs = new MemoryBlobStore();

  static async create(): Promise<World> {
    const world = new World();
    const training = { mode: "lora", lora: { rank: 2, alpha: 4, targets: ["c_attn"] } };
    const job = jobOf(JOB, { model: { base: BASE }, training, data: { dataset: "speeches", seqLen: 8 } });
    await world.store.create("TrainingJob", { ...job, metadata: newMeta(JOB) });
    const weights = await world.weights(1);
    const base = Model.fromPartial({ metadata: newMeta(BASE), family: "gpt2", weights });
    await world.store.create("Model", { ...base, config: TINY });
    return world;
  }

  weights(seed: number): Promise<BlobRef> {
    return this.blobs.put(toBytes(initWeights(TINY_CONFIG, seed)));
  }

  /** The base gets other weights, as the model of a job under way does after each round. */
  async moveBase(seed: number): Promise<void> {
    const stored = await this.store.get("Model", BASE);
    if (stored === undefined) throw new Error("no base");
    await this.store.update("Model", { ...stored, weights: await this.weights(seed) });
  }

  reconcile(store: ResourceStore = this.store): Promise<unknown> {
    const { blobs, clock } = this;
    const graphs = new GraphLibrary(blobs);
    return new JobController({ store, blobs, graphs, clock, log: new MemoryLog() }).reconcile(JOB);
  }

  /** The store, with something done before each call. */
  before(intrude: (method: string, kind: unknown, of: unknown) => Promise<void>): ResourceStore {
    return new Proxy<ResourceStore>(this.store, {
      get: (target, key) => {
        const method: unknown = Reflect.get(target, key);
        if (typeof method !== "function") return method;
        return async (...args: unknown[]): Promise<unknown> => {
          await intrude(String(key), args[0], args[1]);
          return Reflect.apply(method, target, args) as unknown;
        };
      },
    });
  }

  /** A scheduler that dies before it writes the job's status. */
  async reconcileHalf(t: ExecutionContext): Promise<void> {
    const dying = this.before((method, kind) =>
      method === "update" && kind === "TrainingJob" ? Promise.reject(new Error("killed")) : Promise.resolve(),
    );
    await t.throwsAsync(this.reconcile(dying), { message: "killed" });
  }

  /** That the Model and the status are of these weights of the base. */
  async holds(t: ExecutionContext, seed: number): Promise<void> {
    const wanted = await this.weights(seed);
    const { status } = (await this.store.get("TrainingJob", JOB)) ?? {};
    const model = await this.store.get("Model", JOB);
    t.is(status?.phase, "Running");
    t.deepEqual(model?.base?.weights, wanted, "the Model's base");
    t.deepEqual(status?.baseWeights, wanted, "the status's base");
    // In fp32, with all of the base frozen, the frozen tensors are the base's own bytes.
    t.deepEqual(status?.frozen?.blob, wanted, "what devices train over");
    t.deepEqual(status?.weights, model?.weights);
  }
}

test("a base that moves between the publishing of the Model and the status does not part them", async (t) => {
  const world = await World.create();
  await world.reconcileHalf(t);
  await world.moveBase(2);
  await world.reconcile();
  await world.holds(t, 1);
});

test("of two schedulers that read different weights of the base one goes on with the other's", async (t) => {
  const world = await World.create();
  let looks = 0;
  const slow = world.before(async (method, kind, of) => {
    if (method !== "get" || kind !== "Model" || of !== JOB || ++looks !== 2) return;
    // It has read the base, and is about to publish.
    await world.moveBase(2);
    await world.reconcileHalf(t);
  });
  await world.reconcile(slow);
  t.true(looks > 2);
  await world.holds(t, 2);
});

test("a Model that was deleted is made again over the base that devices train over", async (t) => {
  const world = await World.create();
  await world.reconcile();
  const first = await world.store.get("Model", JOB);
  await world.moveBase(2);
  await world.store.delete("Model", JOB);
  await world.reconcile();
  await world.holds(t, 1);
  t.deepEqual((await world.store.get("Model", JOB))?.config, first?.config);
});

test("a job whose own beginning is gone says so, and does not begin on something else", async (t) => {
  const world = await World.create();
  await world.reconcileHalf(t);
  await world.moveBase(2);
  await loseBlob(world.blobs, (await world.weights(1)).digest);
  await world.reconcile();
  const { status } = (await world.store.get("TrainingJob", JOB)) ?? {};
  t.deepEqual([status?.phase, status?.conditions[0]?.reason], ["Pending", "BaseMissing"]);
  t.regex(status?.conditions[0]?.message ?? "", /model "tuned" began with are not stored any more/);
});
