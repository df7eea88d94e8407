import { Worker } from "node:worker_threads";
import type { Digests, DigestTask } from "../ports/digests.js";
import { inlineDigests } from "../runtime/inline-digests.js";
import { CodedError } from "./coded-error.js";
import type { DigestAnswer, DigestOrder } from "./digest-worker.js";

/** From so many bytes on it is worth the way to the thread. */
const LEAST_BYTES = 1024 ** 2;

interface Waiting {
  readonly resolve: (digest: string) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Digests of much data, taken by a thread of their own beside what the process does. Parts in shared memory are read where they
 * lie, others are copied there. A thread that dies fails what it was asked (code "THREAD_DIED"); the next digest has a new one.
 */
export class DigestThread implements Digests {
  #worker: Worker | undefined;
  #tasks = 0;
  /** What goes to the thread with the next message. */
  #orders: DigestOrder[] = [];
  /** Orders without an answer, in their order. */
  #waiting: Waiting[] = [];

  open(sizeBytes: number): DigestTask {
    if (sizeBytes < LEAST_BYTES) return inlineDigests.open(sizeBytes);
    const worker = (this.#worker ??= this.#start());
    const task = this.#tasks++;
    let isOpen = true;
    const order = (given: Omit<DigestOrder, "task">): Promise<string> => {
      if (worker !== this.#worker) return Promise.reject(died("it was another one's"));
      return this.#order({ task, ...given });
    };
    return {
      add: async (part) => {
        // One that was dropped meanwhile wants no more.
        if (isOpen) await order({ part });
      },
      finish: () => {
        isOpen = false;
        return order({ end: true });
      },
      drop: () => {
        if (isOpen) order({ end: true }).catch(() => undefined);
        isOpen = false;
      },
    };
  }

  /** Ends the thread. */
  async close(): Promise<void> {
    const worker = this.#worker;
    this.#end("it was closed");
    await worker?.terminate();
  }

  #start(): Worker {
    const worker = new Worker(new URL("./digest-worker.js", import.meta.url), { execArgv: [] });
    // Only while somebody waits for it does it keep the process alive.
    worker.unref();
    worker.on("message", (answers: DigestAnswer[]) => {
      if (worker !== this.#worker) return;
      for (const answer of answers) this.#waiting.shift()?.resolve(answer);
      if (this.#waiting.length === 0) worker.unref();
    });
    worker.on("error", (error) => {
      if (worker === this.#worker) this.#end(error.message);
    });
    worker.on("exit", () => {
      if (worker === this.#worker) this.#end("it ended");
    });
    return worker;
  }

  #order(order: DigestOrder): Promise<string> {
    const answered = new Promise<string>((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
    });
    if (this.#waiting.length === 1) this.#worker?.ref();
    // Updates are read side by side: what is asked in one turn goes in one message.
    if (this.#orders.length === 0) queueMicrotask(() => this.#send());
    this.#orders.push(order);
    return answered;
  }

  #send(): void {
    const orders = this.#orders;
    this.#orders = [];
    if (orders.length === 0) return;
    const copies: ArrayBuffer[] = [];
    const own = orders.map((order) => {
      if (order.part === undefined || order.part.buffer instanceof SharedArrayBuffer) return order;
      // By itself all the memory that the part is a view of would be copied.
      const part = new Uint8Array(order.part);
      copies.push(part.buffer);
      return { ...order, part };
    });
    this.#worker?.postMessage(own, copies);
  }

  #end(why: string): void {
    this.#worker = undefined;
    this.#orders = [];
    for (const { reject } of this.#waiting.splice(0)) reject(died(why));
  }
}

const died = (why: string): CodedError =>
  new CodedError("THREAD_DIED", `the thread that takes digests is gone: ${why}`);
