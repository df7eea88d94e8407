import type { Clock } from "../ports/clock.js";
import type { Log } from "../ports/log.js";
import type { Metrics } from "../ports/metrics.js";
import type { WorkQueue } from "../ports/work-queue.js";
import { backoffMs, type Backoff } from "./backoff.js";
import type { Source } from "./source.js";

/** What a reconcile came to: nothing to do until something changes, or look again after a time. */
export type Outcome = { type: "done" } | { type: "requeue"; afterMs: number };

export interface ControllerOptions {
  /** Name in logs and metrics, e.g. "round-controller". */
  name: string;
  sources: readonly Source[];
  /**
   * Brings the world of one key closer to what is asked for. Gets only the key, reads the world anew, is safe to run
   * twice and at any time. A throw means: try again later.
   */
  reconcile: (key: string, signal: AbortSignal) => Promise<Outcome>;
  queue: WorkQueue;
  clock: Clock;
  log: Log;
  metrics: Metrics;
  /** Uniform in [0, 1); jitter of the backoff. */
  random: () => number;
  resyncMs: number;
  concurrency?: number;
  backoff?: Backoff;
}

const BACKOFF: Backoff = { baseMs: 200, maxMs: 60_000 };
const RESTART: Backoff = { baseMs: 500, maxMs: 10_000 };

/**
 * A level-triggered controller: sources say which keys may need a look, the queue (shared by all replicas) decides who
 * looks, `reconcile` looks. Wake-ups may be lost or repeated; a resync adds every key again and again, so that nothing
 * depends on any one of them. Outages of the store or the queue are waited out.
 */
export class Controller {
  private readonly log: Log;
  private readonly failures = new Map<string, number>();
  /** Keys the queue did not take, with their due times. */
  private readonly owed = new Map<string, number>();
  private queueIsUp = true;

  constructor(private readonly options: ControllerOptions) {
    this.log = options.log.with({ controller: options.name });
  }

  /** Runs until the signal aborts and the last reconcile has ended. Never throws. */
  async run(signal: AbortSignal): Promise<void> {
    const { options } = this;
    await Promise.all([
      ...options.sources.map((source) =>
        this.forever(`source ${source.name}`, signal, () => this.read(source, signal)),
      ),
      this.forever("queue", signal, () =>
        options.queue.run((key) => this.work(key, signal), { concurrency: options.concurrency ?? 2, signal }),
      ),
      this.resync(signal),
      this.payBack(signal),
    ]);
  }

  /** Adds a key by hand. */
  async enqueue(key: string, delayMs = 0): Promise<void> {
    try {
      await this.options.queue.add(key, delayMs > 0 ? { delayMs } : undefined);
      if (!this.queueIsUp) this.log.info("the queue is back");
      this.queueIsUp = true;
    } catch (error) {
      const dueMs = this.options.clock.monotonicMs() + delayMs;
      this.owed.set(key, Math.min(dueMs, this.owed.get(key) ?? Infinity));
      if (this.queueIsUp) this.log.warn("the queue takes no keys; they wait here", { error });
      this.queueIsUp = false;
    }
  }

  private async read(source: Source, signal: AbortSignal): Promise<void> {
    // A key that comes again and again while others are added is added once: the one who looks sees all that has happened.
    const wanted = new Set<string>();
    const adding = { isOver: true };
    const addAll = async (): Promise<void> => {
      adding.isOver = false;
      for (const key of wanted) {
        wanted.delete(key);
        await this.enqueue(key);
      }
      // In the same step in which nothing more was found: a key that comes behind it begins anew.
      adding.isOver = true;
    };
    let added = Promise.resolve();
    for await (const key of source.keys(signal)) {
      wanted.add(key);
      if (adding.isOver) added = addAll();
    }
    await added;
  }

  private async resync(signal: AbortSignal): Promise<void> {
    const { clock, resyncMs, sources } = this.options;
    for (;;) {
      await clock.sleep(resyncMs, signal);
      if (signal.aborted) return;
      for (const source of sources) {
        if (source.all === undefined) continue;
        try {
          for (const key of new Set(await source.all())) await this.enqueue(key);
        } catch (error) {
          this.log.warn("resync failed; the next one tries again", { source: source.name, error });
        }
      }
    }
  }

  /** Offers the queue again what it did not take. */
  private async payBack(signal: AbortSignal): Promise<void> {
    const { clock } = this.options;
    for (;;) {
      await clock.sleep(1000, signal);
      if (signal.aborted) return;
      for (const [key, dueMs] of [...this.owed]) {
        this.owed.delete(key);
        await this.enqueue(key, Math.max(0, dueMs - clock.monotonicMs()));
        if (!this.queueIsUp) break;
      }
    }
  }

  private async work(key: string, signal: AbortSignal): Promise<void> {
    const { options } = this;
    const startMs = options.clock.monotonicMs();
    const labels = { controller: options.name };
    try {
      const outcome = await options.reconcile(key, signal);
      this.failures.delete(key);
      if (outcome.type === "requeue") await this.enqueue(key, Math.max(1, outcome.afterMs));
      this.count(outcome.type);
    } catch (error) {
      const failures = (this.failures.get(key) ?? 0) + 1;
      this.failures.set(key, failures);
      const retryMs = backoffMs(options.backoff ?? BACKOFF, failures, options.random());
      this.count("error");
      if (!signal.aborted) this.log.error("reconcile failed", { key, failures, retryMs, error });
      await this.enqueue(key, retryMs);
    }
    options.metrics
      .histogram("shoal_reconcile_duration_seconds", "Duration of a reconcile.", DURATIONS, ["controller"])
      .observe((options.clock.monotonicMs() - startMs) / 1000, labels);
  }

  private count(outcome: string): void {
    const { metrics, name } = this.options;
    metrics
      .counter("shoal_reconciles_total", "Reconciles by outcome.", ["controller", "outcome"])
      .add(1, { controller: name, outcome });
  }

  /** Runs a loop again whenever it ends or fails, until the signal aborts. */
  private async forever(what: string, signal: AbortSignal, loop: () => Promise<void>): Promise<void> {
    const { clock, random } = this.options;
    const isOver = (): boolean => signal.aborted;
    for (let failures = 1; !isOver(); failures += 1) {
      const startMs = clock.monotonicMs();
      const error = await loop().then(
        () => "it ended",
        (thrown: unknown) => thrown,
      );
      if (isOver()) return;
      if (clock.monotonicMs() - startMs > RESTART.maxMs) failures = 1;
      this.log.warn("a loop stopped; starting it again", { what, error });
      await clock.sleep(backoffMs(RESTART, failures, random()), signal);
    }
  }
}

const DURATIONS = [0.005, 0.02, 0.1, 0.5, 2, 10, 60];
