import { sha256Digest } from "#common/tensor/digest.js";
import type { Backend, EvalSession, TrainSession } from "../backend/backend.js";

interface Disposable {
  dispose(): Promise<void>;
}

/** One opened graph of a kind; rounds of a job use the same one, and opening takes longer than a step. */
class Slot<S extends Disposable> {
  readonly #open: (graph: Uint8Array) => Promise<S>;
  #held: { digest: string; session: S } | undefined;

  constructor(open: (graph: Uint8Array) => Promise<S>) {
    this.#open = open;
  }

  async get(graph: Uint8Array): Promise<S> {
    const digest = sha256Digest(graph);
    if (this.#held?.digest === digest) return this.#held.session;
    // Closed first: two sets of buffers of a large model may not fit.
    await this.close();
    const session = await this.#open(graph);
    this.#held = { digest, session };
    return session;
  }

  async close(): Promise<void> {
    const held = this.#held;
    this.#held = undefined;
    await held?.session.dispose();
  }
}

/** The training and the evaluation graph last used. */
export class Sessions {
  readonly #train: Slot<TrainSession>;
  readonly #eval: Slot<EvalSession>;

  constructor(backend: Backend) {
    this.#train = new Slot((graph) => backend.train(graph));
    this.#eval = new Slot((graph) => backend.eval(graph));
  }

  train(graph: Uint8Array): Promise<TrainSession> {
    return this.#train.get(graph);
  }

  eval(graph: Uint8Array): Promise<EvalSession> {
    return this.#eval.get(graph);
  }

  async close(): Promise<void> {
    await this.#train.close();
    await this.#eval.close();
  }
}
