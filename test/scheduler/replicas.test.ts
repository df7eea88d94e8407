import test from "ava";
import { RoundResult, UpdateTally, type Round } from "#proto/shoal/v1/round.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { API_VERSION, newMeta, roundName } from "#common/domain/resources.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { JobController } from "#services/scheduler/job-controller.js";
import { RoundController } from "#services/scheduler/round-controller.js";
import { deviceOf, jobOf, leaseOf, NOW } from "./world.js";

type Fate = "go" | "crash before" | "crash after";

/** Holds every call of every replica until the seeded scheduler lets it go, or kills its caller before or after it. */
class Turnstile {
  private readonly held: ((fate: Fate) => void)[] = [];
  isClosed = false;

  /** Called when nobody will pass any more. */
  close(): void {
    this.isClosed = true;
  }

  wait(): Promise<Fate> {
    return new Promise((resolve) => this.held.push(resolve));
  }

  release(rng: Rng, crashPercent: number): void {
    if (this.held.length === 0) return;
    const [go] = this.held.splice(rng.int(this.held.length), 1);
    const isCrash = rng.int(100) < crashPercent;
    go?.(isCrash ? (rng.int(2) === 0 ? "crash before" : "crash after") : "go");
  }

  /** The same object, every method of it behind the turnstile. */
  guard<T extends object>(inner: T, onDone: (method: string, args: unknown[], result: unknown) => void): T {
    return new Proxy(inner, {
      get: (target, key) => {
        const method: unknown = Reflect.get(target, key);
        if (typeof method !== "function") return method;
        return async (...args: unknown[]): Promise<unknown> => {
          const fate = await this.wait();
          if (fate === "crash before") throw new Error("killed");
          const result: unknown = await Reflect.apply(method, target, args);
          onDone(String(key), args, result);
          if (fate === "crash after") throw new Error("killed");
          return result;
        };
      },
    });
  }
}

const JOB = "two";
const ROUNDS = 3;
const DEVICES = ["ann", "bob", "cyd", "dan"];

/** An aggregator and a fleet in one: judges a commit of some device, or folds what is frozen. */
async function otherServices(store: ResourceStore, rng: Rng, clock: ManualClock): Promise<void> {
  const { items } = await store.list("Round");
  for (const round of items) {
    const name = round.metadata?.name ?? "";
    const meta = newMeta(name);
    if (round.status?.phase === "Training") await commitOne(store, round, rng);
    if (round.status?.phase !== "Aggregating") continue;
    const number = round.spec?.number ?? 0;
    const isEvaluation = round.spec?.evaluationOnly === true;
    const weights = isEvaluation ? round.spec?.task?.weights : { digest: `weights after ${number}`, sizeBytes: 4 };
    const result = {
      apiVersion: API_VERSION,
      kind: "RoundResult",
      metadata: meta,
      job: JOB,
      number,
      bytesUp: 100 + number,
    };
    await store.create(
      "RoundResult",
      RoundResult.fromPartial({ ...result, weights, trainLoss: 5 - number, evalLoss: 6 - number }),
    );
  }
  await clock.advance(rng.int(500));
  for (const device of DEVICES) {
    const lease = await store.get("Lease", device);
    const next = leaseOf(device, clock.nowMs());
    if (lease?.metadata !== undefined) await store.update("Lease", { ...next, metadata: lease.metadata });
  }
}

async function commitOne(store: ResourceStore, round: Round, rng: Rng): Promise<void> {
  const name = round.metadata?.name ?? "";
  const stored = await store.get("UpdateTally", name);
  const tally =
    stored ?? UpdateTally.fromPartial({ apiVersion: API_VERSION, kind: "UpdateTally", metadata: newMeta(name) });
  const done = new Set(tally.verdicts.map(({ manifest }) => manifest?.device));
  const due = (round.status?.assignments ?? []).filter(({ device }) => !done.has(device));
  const next = due[rng.int(Math.max(1, due.length))];
  if (next === undefined) return;
  const verdict = {
    commitSeq: tally.lastSeq + 1,
    accepted: rng.int(10) > 0,
    reason: "NotFinite",
    manifest: { device: next.device },
  };
  const judged = UpdateTally.fromPartial({
    ...tally,
    verdicts: [...tally.verdicts, verdict],
    lastSeq: tally.lastSeq + 1,
  });
  await (stored === undefined ? store.create("UpdateTally", judged) : store.update("UpdateTally", judged));
}

/** Whether the replicas should end. */
function newLife(): { over: boolean } {
  return { over: false };
}

const isOver = (life: { over: boolean }): boolean => life.over;

interface Story {
  /** Committed plans by round and attempt. */
  plans: Map<string, number>;
  /** Phase of a round as last written. */
  phases: Map<string, string>;
  /** Times a round was created, and its fold set frozen. */
  created: Map<string, number>;
  frozen: Map<string, number>;
  crashes: number;
  races: number;
}

const count = (of: Map<string, number>, key: string): void => void of.set(key, (of.get(key) ?? 0) + 1);

/** Notes what each successful write did to a round. */
function noteWrite(story: Story, method: string, args: unknown[], result: unknown): void {
  const written = result as { ok?: boolean } | undefined;
  if (args[0] !== "Round" || (method !== "create" && method !== "update")) return;
  if (written?.ok !== true) {
    story.races++;
    return;
  }
  const round = args[1] as Round;
  const name = round.metadata?.name ?? "";
  const phase = round.status?.phase ?? "";
  const isPlan = phase === "Training" && story.phases.get(name) !== phase;
  story.phases.set(name, phase);
  if (method === "create") count(story.created, name);
  else if (phase === "Aggregating") count(story.frozen, name);
  else if (isPlan) count(story.plans, `${name} attempt ${round.status?.attempt ?? 0}`);
}

async function live(seed: number, crashPercent: number): Promise<{ story: Story; store: MemoryResourceStore }> {
  const rng = createRng(seed);
  const clock = new ManualClock(NOW);
  const store = new MemoryResourceStore(clock);
  const blobs = new MemoryBlobStore();
  const job = jobOf(JOB, { rounds: ROUNDS, cohort: { min: 2, target: 3, overCommit: 1.3 } });
  await store.create("TrainingJob", { ...job, metadata: newMeta(JOB) });
  for (const name of DEVICES) {
    await store.create("Device", deviceOf(name));
    await store.create("Lease", leaseOf(name));
  }
  const story: Story = {
    plans: new Map(),
    phases: new Map(),
    created: new Map(),
    frozen: new Map(),
    crashes: 0,
    races: 0,
  };
  const turnstile = new Turnstile();
  const log = new MemoryLog();
  const life = newLife();
  const replica = async (): Promise<void> => {
    while (!isOver(life)) {
      const guarded: ResourceStore = turnstile.guard(store, (...call) => noteWrite(story, ...call));
      const guardedBlobs: BlobStore = turnstile.guard(blobs, () => undefined);
      // A crash loses all memory: controllers begin anew.
      const graphs = new GraphLibrary(guardedBlobs);
      const jobs = new JobController({ store: guarded, blobs: guardedBlobs, graphs, clock, log });
      const parts = {
        store: guarded,
        updates: new MemoryUpdateLog(),
        graphs,
        clock,
        log,
        metrics: new MemoryMetrics(),
      };
      const rounds = new RoundController(parts);
      try {
        while (!isOver(life)) {
          await (rng.int(3) === 0 ? jobs.reconcile(JOB) : rounds.reconcile(roundName(JOB, 1 + rng.int(ROUNDS + 1))));
          if (!isOver(life)) await turnstile.wait();
        }
      } catch (error) {
        if (!(error instanceof Error && error.message === "killed")) throw error;
        story.crashes++;
      }
    }
  };
  const replicas = [replica(), replica()];
  for (let step = 0; step < 60_000 && !life.over; step++) {
    turnstile.release(rng, crashPercent);
    if (step % 20 === 0) await otherServices(store, rng, clock);
    await new Promise((resolve) => setImmediate(resolve));
    if (step % 50 === 0) life.over = (await store.get("TrainingJob", JOB))?.status?.phase === "Completed";
  }
  const completed = life.over;
  life.over = true;
  const settled = Promise.all(replicas).then(() => turnstile.close());
  while (!turnstile.isClosed) {
    turnstile.release(rng, 0);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await settled;
  if (!completed)
    throw new Error(`seed ${seed} did not complete: ${JSON.stringify((await store.get("TrainingJob", JOB))?.status)}`);
  // What a crash left undone after completion is done by the next look.
  await new JobController({ store, blobs, graphs: new GraphLibrary(blobs), clock, log }).reconcile(JOB);
  return { story, store };
}

for (const crashPercent of [0, 2, 8]) {
  test(`two replicas, ${crashPercent} % of the store's calls kill their caller`, async (t) => {
    let crashes = 0;
    let races = 0;
    for (let seed = 1; seed <= 8; seed++) {
      const { story, store } = await live(seed, crashPercent);
      crashes += story.crashes;
      races += story.races;
      for (const [plan, times] of story.plans) t.is(times, 1, `seed ${seed}: ${plan} was planned ${times} times`);
      for (const [name, times] of [...story.created, ...story.frozen]) t.is(times, 1, `seed ${seed}: ${name}`);
      t.true(story.plans.size > ROUNDS, "every round was planned");
      t.is(story.created.size, ROUNDS + 1);
      t.is(story.frozen.size, ROUNDS + 1);
      const job = await store.get("TrainingJob", JOB);
      t.is(job?.status?.completedRounds, ROUNDS);
      t.is(job?.status?.bytesUp, 101 + 102 + 103 + 104, "every result was counted once");
      t.is(job?.status?.weights?.digest, "weights after 3");
      t.is(job?.status?.evalLoss, 2);
      const model = await store.get("Model", JOB);
      t.deepEqual([model?.weights?.digest, model?.origin], ["weights after 3", { job: JOB, round: ROUNDS }]);
      for (let n = 2; n <= ROUNDS + 1; n++) {
        const round = await store.get("Round", roundName(JOB, n));
        t.is(
          round?.spec?.task?.weights?.digest,
          `weights after ${n - 1}`,
          "a round starts from what the last one made",
        );
        t.is(round?.spec?.evaluationOnly, n > ROUNDS);
      }
    }
    t.true(races > 0, "no race was ever lost: the replicas did not interleave");
    t.is(crashes > 0, crashPercent > 0);
  });
}
