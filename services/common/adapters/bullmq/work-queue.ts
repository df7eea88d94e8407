import { Queue, Worker, type JobsOptions } from "bullmq";
import { Redis } from "ioredis";
import type { Clock } from "../../ports/clock.js";
import type { Log } from "../../ports/log.js";
import type { WorkQueue } from "../../ports/work-queue.js";
import { CodedError, messageOf } from "../coded-error.js";

export interface BullWorkQueueOptions {
  redisUrl: string;
  /** Same for all replicas that share the work; letters, digits and '-'. */
  name: string;
  clock: Clock;
  log: Log;
  /** Longest time an add may take before it fails with code "QUEUE_UNAVAILABLE". Default 2000. */
  addTimeoutMs?: number;
}

/** A worker that dies loses its keys for this long; then another one gets them. */
const LOCK_MS = 15_000;
const CLOSE_MS = 5000;

/** Runs the handler for the key in its data. */
const NOW = "now";
/** Adds the key in its data when its delay is over, so that delayed and immediate adds do not stand in each other's way. */
const LATER = "later";

/**
 * WorkQueue on BullMQ. An immediate key is deduplicated with keepLastIfActive. A delayed one is a job of another kind
 * which, when due, adds the key; of several delays of one key the shortest counts. Redis may be wiped at any moment: keys
 * are lost, no more.
 */
export class BullWorkQueue implements WorkQueue {
  private readonly redis: Redis;
  private readonly queue: Queue<{ key: string }>;
  private readonly workers = new Set<Worker<{ key: string }>>();
  private complainedAtMs = -Infinity;

  constructor(private readonly options: BullWorkQueueOptions) {
    this.redis = new Redis(options.redisUrl, {
      maxRetriesPerRequest: null,
      enableOfflineQueue: false,
      retryStrategy: retryDelayMs,
    });
    this.redis.on("error", (error) => this.complain(error));
    this.queue = new Queue(options.name, {
      connection: this.redis,
      prefix: "shoal",
      streams: { events: { maxLen: 100 } },
      defaultJobOptions: { removeOnComplete: true, removeOnFail: true },
    });
    this.queue.on("error", (error) => this.complain(error));
  }

  /** Whether Redis is there at this moment. */
  get connected(): boolean {
    return this.redis.status === "ready";
  }

  async add(key: string, options?: { delayMs?: number }): Promise<void> {
    const delayMs = options?.delayMs ?? 0;
    await this.bounded(delayMs > 0 ? this.addLater(key, Math.ceil(delayMs)) : this.addNow(key));
  }

  async run(
    handler: (key: string) => Promise<void>,
    options: { concurrency: number; signal: AbortSignal },
  ): Promise<void> {
    if (options.signal.aborted) return;
    const retryStrategy = (times: number): number | null => (options.signal.aborted ? null : retryDelayMs(times));
    const connection = new Redis(this.options.redisUrl, { maxRetriesPerRequest: null, retryStrategy });
    connection.on("error", (error) => this.complain(error));
    const inHand = new Set<Promise<void>>();
    const worker = new Worker<{ key: string }>(
      this.options.name,
      async (job) => {
        if (job.name === LATER) {
          await this.addNow(job.data.key);
          return;
        }
        // What a handler throws is its caller's to log: the key was worked on.
        const work = handler(job.data.key).catch(() => undefined);
        inHand.add(work);
        await work;
        inHand.delete(work);
      },
      {
        connection,
        prefix: "shoal",
        concurrency: options.concurrency,
        lockDuration: LOCK_MS,
        stalledInterval: LOCK_MS / 3,
        maxStalledCount: 1000,
        drainDelay: 5,
      },
    );
    this.workers.add(worker);
    worker.on("error", (error) => this.complain(error));
    await new Promise<void>((resolve) => options.signal.addEventListener("abort", () => resolve(), { once: true }));
    await this.closeWorker(worker);
    await Promise.all(inHand);
    connection.disconnect();
  }

  async close(): Promise<void> {
    await Promise.all([...this.workers].map((worker) => this.closeWorker(worker)));
    const closing = this.queue.close().catch(() => undefined);
    await Promise.race([closing, this.options.clock.sleep(CLOSE_MS)]);
    this.redis.disconnect();
  }

  private async addNow(key: string): Promise<void> {
    await this.queue.add(NOW, { key }, { deduplication: { id: key, keepLastIfActive: true } });
  }

  private async addLater(key: string, delayMs: number): Promise<void> {
    const id = `${LATER}:${key}`;
    const waitingId = await this.queue.getDeduplicationJobId(id);
    const waiting = waitingId === null ? undefined : await this.queue.getJob(waitingId);
    if (waiting !== undefined && waiting.timestamp + waiting.delay <= this.options.clock.nowMs() + delayMs) return;
    const options: JobsOptions = { delay: delayMs, deduplication: { id, replace: true, keepLastIfActive: true } };
    await this.queue.add(LATER, { key }, options);
  }

  /** BullMQ waits for Redis as long as it takes; a controller has better things to do. */
  private async bounded(work: Promise<void>): Promise<void> {
    const timeoutMs = this.options.addTimeoutMs ?? 2000;
    const done = new AbortController();
    const timeout = this.options.clock.sleep(timeoutMs, done.signal).then(() => {
      if (!done.signal.aborted) throw new CodedError("QUEUE_UNAVAILABLE", `Redis did not answer in ${timeoutMs} ms`);
    });
    work.catch(() => undefined);
    timeout.catch(() => undefined);
    try {
      await Promise.race([work, timeout]);
    } catch (error) {
      if (error instanceof CodedError) throw error;
      throw new CodedError("QUEUE_UNAVAILABLE", `the queue refused: ${messageOf(error)}`, { cause: error });
    } finally {
      done.abort();
    }
  }

  private async closeWorker(worker: Worker<{ key: string }>): Promise<void> {
    if (!this.workers.delete(worker)) return;
    const closing = worker.close().catch(() => undefined);
    const done = new AbortController();
    const timeout = this.options.clock.sleep(CLOSE_MS, done.signal).then(() => {
      // Without Redis a graceful close has nobody to tell; the connections end with their retries.
      if (done.signal.aborted || this.connected) return closing;
      return undefined;
    });
    await Promise.race([closing, timeout]);
    done.abort();
  }

  private complain(error: Error): void {
    const nowMs = this.options.clock.monotonicMs();
    if (nowMs - this.complainedAtMs < 5000) return;
    this.complainedAtMs = nowMs;
    this.options.log.warn("Redis fails; trying again", {
      queue: this.options.name,
      error: messageOf(error) || error.name,
    });
  }
}

function retryDelayMs(times: number): number {
  return Math.min(times * 100, 1000);
}
