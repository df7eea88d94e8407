import type { Tensor } from "onnxruntime-common";
import { laneGraphs } from "#common/graph/lanes.js";
import { buildMatmulGraph } from "#common/graph/matmul.js";
import type {
  Backend,
  Batch,
  DecodeSession,
  EvalSession,
  FrozenTensors,
  GraphSession,
  LogitsSession,
  RoundTerms,
  TrainSession,
  TrainState,
} from "./backend.js";
import {
  BatchFeeds,
  dimensions,
  fill,
  FrozenFeeds,
  type Piece,
  piecesOf,
  product,
  slotsOf,
  StateBuffers,
  total,
  TrainedVectors,
  views,
} from "./buffers.js";
import type { Kernels } from "./kernels/module.js";
import { openLanes } from "./lanes.js";
import { floats, type OrtRuntime, type OrtSession, type Tensors } from "./runtime.js";

const scalar = ({ Tensor }: OrtRuntime, data: Float32Array): Tensor => new Tensor("float32", data, []);
const int64 = ({ Tensor }: OrtRuntime, value: number): Tensor =>
  new Tensor("int64", BigInt64Array.of(BigInt(value)), [1]);

/** What every session has: the graph, its weights' places and its frozen tensors. */
class OrtGraph implements GraphSession {
  readonly runtime: OrtRuntime;
  readonly session: OrtSession;
  readonly pieces: readonly Piece[];
  readonly #frozen: FrozenFeeds;

  constructor(runtime: OrtRuntime, session: OrtSession) {
    this.runtime = runtime;
    this.session = session;
    this.pieces = piecesOf(session, "weights");
    this.#frozen = new FrozenFeeds(runtime, session);
  }

  get frozenParameters(): number {
    return this.#frozen.parameters;
  }

  loadFrozen(values: Float32Array | FrozenTensors): void {
    this.#frozen.load(values);
  }

  /** The frozen tensors; throws if they have not been loaded. */
  get frozen(): Tensors {
    return this.#frozen.feeds;
  }

  weights(values: Float32Array): Tensors {
    return { ...views(this.runtime, "weights", this.pieces, values), ...this.frozen };
  }

  async dispose(): Promise<void> {
    await this.session.release();
  }
}

class OrtTrainSession extends OrtGraph implements TrainSession {
  readonly #batch: BatchFeeds;
  readonly #vectors: TrainedVectors;
  readonly #lr = new Float32Array(1);
  readonly #step = new Float32Array(1);
  readonly #loss = new Float32Array(1);
  readonly #gradNorm = new Float32Array(1);
  #terms: Tensors = {};
  readonly #buffers: StateBuffers;

  constructor(runtime: OrtRuntime, session: OrtSession) {
    super(runtime, session);
    this.#batch = new BatchFeeds(runtime, session);
    this.#vectors = new TrainedVectors(total(this.pieces), slotsOf(session));
    this.#buffers = new StateBuffers(runtime, session, this.pieces, this.#vectors);
  }

  get parameters(): number {
    return this.#vectors.parameters;
  }

  load(state: TrainState): void {
    this.#vectors.load(state);
  }

  setTerms({ anchor, mu, correction }: RoundTerms): void {
    const vector = (name: string, values: Float32Array | undefined): Tensors =>
      values === undefined
        ? {}
        : views(this.runtime, name, this.session.inputNames.includes(`${name}.0`) ? this.pieces : [], values);
    this.#terms = {
      ...vector("anchor", anchor),
      ...vector("correction", correction),
      ...(mu === undefined ? {} : { mu: scalar(this.runtime, Float32Array.of(mu)) }),
    };
  }

  async step(batch: Batch, lr: number, step: number): Promise<{ loss: number; gradNorm: number }> {
    this.#batch.set(batch);
    this.#lr[0] = lr;
    this.#step[0] = step;
    const scalars = { lr: scalar(this.runtime, this.#lr), step: scalar(this.runtime, this.#step) };
    await this.session.runInto(
      { ...this.#batch.feeds, ...this.#buffers.feeds, ...this.frozen, ...this.#terms, ...scalars },
      {
        loss: scalar(this.runtime, this.#loss),
        grad_norm: scalar(this.runtime, this.#gradNorm),
        ...this.#buffers.fetches,
      },
    );
    return { loss: this.#loss[0] ?? NaN, gradNorm: this.#gradNorm[0] ?? NaN };
  }

  state(): TrainState {
    return this.#vectors.copy();
  }
}

class OrtEvalSession extends OrtGraph implements EvalSession {
  readonly #batch = new BatchFeeds(this.runtime, this.session);

  async evaluate(weights: Float32Array, batch: Batch): Promise<{ lossSum: number; tokens: number }> {
    this.#batch.set(batch);
    const results = await this.session.run({ ...this.#batch.feeds, ...this.weights(weights) });
    return { lossSum: floats(results, "loss_sum")[0] ?? NaN, tokens: floats(results, "token_count")[0] ?? NaN };
  }
}

class OrtLogitsSession extends OrtGraph implements LogitsSession {
  readonly #dims = dimensions(this.session, "tokens");
  readonly seqLen = this.#dims[1] ?? 0;
  readonly #window = new BigInt64Array(this.seqLen);

  async logits(weights: Float32Array, tokens: Int32Array): Promise<Float32Array> {
    const seen = tokens.subarray(Math.max(0, tokens.length - this.seqLen));
    if (seen.length === 0) throw new RangeError("at least one token is needed");
    this.#window.fill(0n);
    fill(this.#window.subarray(0, seen.length), seen);
    const results = await this.session.run({
      tokens: new this.runtime.Tensor("int64", this.#window, this.#dims),
      position: int64(this.runtime, seen.length - 1),
      ...this.weights(weights),
    });
    return floats(results, "logits");
  }
}

/** A block's cache [kvHeads, capacity, d]: the graph reads it, and its new rows are copied in behind the filled ones. */
interface CachePart {
  readonly output: string;
  readonly data: Float32Array;
  readonly rowSize: number;
}

class OrtDecodeSession extends OrtGraph implements DecodeSession {
  readonly capacity: number;
  readonly #parts: readonly CachePart[];
  readonly #past: Tensors = {};
  readonly #chunk = dimensions(this.session, "tokens")[1] ?? 1;
  #filled = 0;

  constructor(runtime: OrtRuntime, session: OrtSession) {
    super(runtime, session);
    const inputs = session.inputNames.filter((name) => name.startsWith("past_"));
    this.#parts = inputs.map((name) => {
      const dims = dimensions(session, name);
      const data = new Float32Array(product(dims));
      this.#past[name] = new runtime.Tensor("float32", data, dims);
      return { output: name.replace("past_", "new_"), data, rowSize: dims[2] ?? 0 };
    });
    this.capacity = dimensions(session, inputs[0] ?? "past_k.0")[1] ?? 0;
  }

  get filled(): number {
    return this.#filled;
  }

  reset(): void {
    this.#filled = 0;
  }

  async next(weights: Float32Array, tokens: Int32Array): Promise<Float32Array> {
    if (tokens.length === 0) throw new RangeError("at least one token is needed");
    if (this.#filled + tokens.length > this.capacity) {
      throw new RangeError(
        `the cache holds ${this.#filled} of ${this.capacity} tokens and cannot take ${tokens.length}`,
      );
    }
    const feeds = this.weights(weights);
    let logits = new Float32Array(0);
    for (let from = 0; from < tokens.length; from += this.#chunk) {
      logits = await this.#take(feeds, tokens.subarray(from, from + this.#chunk));
    }
    return logits;
  }

  async #take(weights: Tensors, tokens: Int32Array): Promise<Float32Array<ArrayBuffer>> {
    const window = new BigInt64Array(this.#chunk);
    fill(window.subarray(0, tokens.length), tokens);
    const results = await this.session.run({
      tokens: new this.runtime.Tensor("int64", window, [1, this.#chunk]),
      filled: int64(this.runtime, this.#filled),
      position: int64(this.runtime, tokens.length - 1),
      ...this.#past,
      ...weights,
    });
    for (const { output, data, rowSize } of this.#parts) {
      const rows = floats(results, output);
      const heads = data.length / (this.capacity * rowSize);
      for (let head = 0; head < heads; head++) {
        const from = head * this.#chunk * rowSize;
        const to = (head * this.capacity + this.#filled) * rowSize;
        data.set(rows.subarray(from, from + tokens.length * rowSize), to);
      }
    }
    this.#filled += tokens.length;
    return Float32Array.from(floats(results, "logits"));
  }
}

async function timeMatmul(runtime: OrtRuntime, session: OrtSession, n: number, seconds: number): Promise<number> {
  const matrix = (value: number): Tensor => new runtime.Tensor("float32", new Float32Array(n * n).fill(value), [n, n]);
  const [a, out] = [matrix(0.5), matrix(0)];
  const run = (): Promise<unknown> => session.runInto({ a, b: a }, { product: out });
  await run();
  const durationsMs: number[] = [];
  const deadlineMs = runtime.nowMs() + seconds * 1000;
  do {
    const startMs = runtime.nowMs();
    await run();
    durationsMs.push(runtime.nowMs() - startMs);
  } while (runtime.nowMs() < deadlineMs);
  // The median: one run that had to wait for a core says nothing about the device.
  const medianMs = durationsMs.sort((x, y) => x - y)[durationsMs.length >> 1] ?? NaN;
  return (2 * n ** 3) / (medianMs * 1e6);
}

async function measureMatmul(runtime: OrtRuntime, n: number, seconds: number): Promise<number> {
  const session = await runtime.open(buildMatmulGraph(n));
  try {
    return await timeMatmul(runtime, session, n, seconds);
  } finally {
    await session.release();
  }
}

/** Training steps are run in lanes, one or several, that share the threads. */
export interface LaneOptions {
  readonly threads: number;
  /** A runtime with so many threads for each session, whose runs go on side by side. */
  runtime(threads: number): OrtRuntime;
  /** The end of a step over a session's vectors. */
  kernels(): Kernels;
}

async function openTraining(runtime: OrtRuntime, graph: Uint8Array, lanes?: LaneOptions): Promise<TrainSession> {
  const graphs = lanes && laneGraphs(graph, lanes.threads);
  if (lanes !== undefined && graphs !== undefined) {
    return openLanes(lanes.runtime(Math.floor(lanes.threads / graphs.lanes)), graphs, lanes.kernels());
  }
  return new OrtTrainSession(runtime, await runtime.open(graph));
}

/** The backend of a runtime, whichever it is. */
export function backendOf(runtime: OrtRuntime, lanes?: LaneOptions): Backend {
  return {
    name: runtime.name,
    train: (graph) => openTraining(runtime, graph, lanes),
    eval: async (graph) => new OrtEvalSession(runtime, await runtime.open(graph)),
    logits: async (graph) => new OrtLogitsSession(runtime, await runtime.open(graph)),
    decode: async (graph) => new OrtDecodeSession(runtime, await runtime.open(graph)),
    matmulGflops: (n, seconds) => measureMatmul(runtime, n, seconds),
  };
}
