import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import type { ModelConfig } from "#common/graph/config.js";
import type { TrainGraphOptions } from "#common/graph/train.js";

/** What a process of its own is to measure. */
export type Task =
  | { readonly kind: "idle" }
  | {
      /** Training steps; the step's matrix products alone; the share of products in its nodes' time. */
      readonly kind: "step" | "products" | "share";
      readonly config: ModelConfig;
      readonly options: TrainGraphOptions;
      readonly threads: number;
    };

export interface Report {
  readonly runsMs: readonly number[];
  /** Most memory the process has had at once. */
  readonly peakBytes: number;
  readonly productShare?: number;
}

/** A process that runs one task and nothing else, so that its peak memory is the task's. */
export class Worker {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  /** @returns the process once it is ready, with what it reports then */
  static async start(task: Task): Promise<{ worker: Worker; report: Report }> {
    const child = fork(new URL("child.js", import.meta.url), [JSON.stringify(task)], { execArgv: ["--expose-gc"] });
    const worker = new Worker(child);
    return { worker, report: await worker.#next() };
  }

  async #next(): Promise<Report> {
    const waiting = new AbortController();
    try {
      const failed = once(this.#child, "exit", waiting).then(([code, signal]) => {
        throw new Error(`the measuring process ended with ${String(code ?? signal)}`);
      });
      const [report] = (await Promise.race([once(this.#child, "message", waiting), failed])) as [Report];
      return report;
    } finally {
      waiting.abort();
    }
  }

  /** So many runs, one after the other. */
  run(runs: number): Promise<Report> {
    this.#child.send(runs);
    return this.#next();
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const ended = once(this.#child, "exit");
    if (this.#child.connected) this.#child.disconnect();
    await ended;
  }
}
