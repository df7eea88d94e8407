import { sha256Digest } from "#common/tensor/digest.js";
import type { Backend, EvalSession, FrozenTensors, GraphSession, TrainSession } from "../backend/backend.js";

/** One opened graph of a kind; rounds of a job use the same one, and opening takes longer than a step. */
class Slot<S extends GraphSession> {
  readonly #open: (graph: Uint8Array) => Promise<S>;
  #held: { digest: string; frozen: FrozenTensors | undefined; session: S } | undefined;

  constructor(open: (graph: Uint8Array) => Promise<S>) {
    this.#open = open;
  }

  async get(graph: Uint8Array, frozen: FrozenTensors | undefined): Promise<S> {
    const digest = sha256Digest(graph);
    if (this.#held?.digest === digest && this.#held.frozen === frozen) return this.#held.session;
    // Closed first: two sets of buffers of a large model may not fit.
    await this.close();
    const session = await this.#open(graph);
    try {
      if (frozen !== undefined) session.loadFrozen(frozen);
    } catch (error) {
      await session.dispose();
      throw error;
    }
    this.#held = { digest, frozen, session };
    return session;
  }

  async close(): Promise<void> {
    const held = this.#held;
    this.#held = undefined;
    await held?.session.dispose();
  }
}

/** The training and the evaluation graph last used, with the frozen tensors they were given. */
export class Sessions {
  readonly #train: Slot<TrainSession>;
  readonly #eval: Slot<EvalSession>;

  constructor(backend: Backend) {
    this.#train = new Slot((graph) => backend.train(graph));
    this.#eval = new Slot((graph) => backend.eval(graph));
  }

  /** @param frozen the very object of the last call, as long as the base is the same */
  train(graph: Uint8Array, frozen?: FrozenTensors): Promise<TrainSession> {
    return this.#train.get(graph, frozen);
  }

  eval(graph: Uint8Array, frozen?: FrozenTensors): Promise<EvalSession> {
    return this.#eval.get(graph, frozen);
  }

  /** Before work without an evaluation: the last one's buffers may be of another, larger model. */
  closeEval(): Promise<void> {
    return this.#eval.close();
  }

  /** Both; the next call opens its graph anew. */
  async close(): Promise<void> {
    await this.#train.close();
    await this.#eval.close();
  }
}
