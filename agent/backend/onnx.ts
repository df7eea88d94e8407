import * as ort from "onnxruntime-node";
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

export interface OnnxOptions {
  /** Threads inside one operator, a whole number from 1. */
  readonly threads: number;
}

const float = (data: Float32Array, dims: readonly number[]): ort.Tensor => new ort.Tensor("float32", data, dims);

const tensorOf = (data: Float32Array | Uint8Array, dims: readonly number[]): ort.Tensor =>
  data instanceof Uint8Array ? new ort.Tensor("uint8", data, dims) : float(data, dims);

/** Copies into a tensor's int64 buffer, which is reused from step to step. */
function fill(target: BigInt64Array, values: Int32Array): void {
  if (values.length !== target.length) {
    throw new RangeError(`the graph takes ${target.length} tokens in a batch, got ${values.length}`);
  }
  for (let i = 0; i < values.length; i++) target[i] = BigInt(values[i] ?? 0);
}

function dimensions(session: ort.InferenceSession, input: string): number[] {
  const metadata = session.inputMetadata.find((candidate) => candidate.name === input);
  if (metadata?.isTensor !== true) throw new TypeError(`the graph has no tensor input ${input}`);
  return metadata.shape.map((d) => {
    if (typeof d !== "number") throw new TypeError(`input ${input} of the graph has the open dimension ${d}`);
    return d;
  });
}

function floats(results: ort.InferenceSession.ReturnType, name: string): Float32Array {
  const data = results[name]?.data;
  if (!(data instanceof Float32Array)) throw new TypeError(`the graph gave no float32 output ${name}`);
  return data;
}

const scalar = (results: ort.InferenceSession.ReturnType, name: string): number => floats(results, name)[0] ?? NaN;

type Tensors = Record<string, ort.Tensor>;
const BATCH_INPUTS = ["tokens", "targets", "segments"] as const;

/** Buffers of a batch's inputs, as far as the graph has them. */
class BatchFeeds {
  readonly feeds: Tensors = {};
  readonly #buffers: { name: (typeof BATCH_INPUTS)[number]; data: BigInt64Array }[] = [];

  constructor(session: ort.InferenceSession) {
    for (const name of BATCH_INPUTS.filter((input) => session.inputNames.includes(input))) {
      const dims = dimensions(session, name);
      const data = new BigInt64Array(product(dims));
      this.#buffers.push({ name, data });
      this.feeds[name] = new ort.Tensor("int64", data, dims);
    }
  }

  set(batch: Batch): void {
    for (const { name, data } of this.#buffers) {
      const values = batch[name];
      if (values === undefined) throw new RangeError(`the graph packs documents: the batch must have ${name}`);
      fill(data, values);
    }
  }
}

interface Piece {
  readonly dims: readonly number[];
  readonly begin: number;
  readonly end: number;
}

const product = (dims: readonly number[]): number => dims.reduce((all, d) => all * d, 1);
const total = (pieces: readonly Piece[]): number => pieces.at(-1)?.end ?? 0;

/** Where the graph's inputs `<name>.0`, `<name>.1`, ... lie in their flat vector: one after the other. */
function piecesOf(session: ort.InferenceSession, name: string): Piece[] {
  let end = 0;
  const count = session.inputNames.filter((input) => input.startsWith(`${name}.`)).length;
  return Array.from({ length: count }, (_, i) => {
    const dims = dimensions(session, `${name}.${i}`);
    const begin = end;
    end += product(dims);
    return { dims, begin, end };
  });
}

/** Tensors `<name>.0`, `<name>.1`, ... that are views of one flat vector, which is not copied. */
function views(name: string, pieces: readonly Piece[], flat: Float32Array | Uint8Array): Tensors {
  if (flat.length !== total(pieces)) {
    throw new RangeError(`the graph has ${total(pieces)} values of ${name}, the vector has ${flat.length}`);
  }
  return Object.fromEntries(
    pieces.map(({ dims, begin, end }, i) => [`${name}.${i}`, tensorOf(flat.subarray(begin, end), dims)]),
  );
}

/** What every session has: the graph, its weights' places and its frozen tensors. */
class OnnxGraph implements GraphSession {
  readonly session: ort.InferenceSession;
  readonly pieces: readonly Piece[];
  readonly #frozenPieces: Readonly<Record<keyof FrozenTensors, readonly Piece[]>>;
  #frozen: Tensors | undefined;

  constructor(session: ort.InferenceSession) {
    this.session = session;
    this.pieces = piecesOf(session, "weights");
    const [plain, packed, scales] = ["frozen", "packed", "scales"].map((name) => piecesOf(session, name));
    this.#frozenPieces = { plain: plain ?? [], packed: packed ?? [], scales: scales ?? [] };
    if (Object.values(this.#frozenPieces).every((pieces) => pieces.length === 0)) this.#frozen = {};
  }

  get frozenParameters(): number {
    return total(this.#frozenPieces.plain);
  }

  loadFrozen(values: Float32Array | FrozenTensors): void {
    const none = { packed: new Uint8Array(), scales: new Float32Array() };
    const { plain, packed, scales } = values instanceof Float32Array ? { plain: values, ...none } : values;
    this.#frozen = {
      ...views("frozen", this.#frozenPieces.plain, plain),
      ...views("packed", this.#frozenPieces.packed, packed),
      ...views("scales", this.#frozenPieces.scales, scales),
    };
  }

  /** The frozen tensors; throws if they have not been loaded. */
  get frozen(): Tensors {
    if (this.#frozen === undefined) throw new RangeError("the graph has frozen tensors: load them first");
    return this.#frozen;
  }

  weights(values: Float32Array): Tensors {
    return { ...views("weights", this.pieces, values), ...this.frozen };
  }

  async dispose(): Promise<void> {
    await this.session.release();
  }
}

const SLOTS = ["m", "v"] as const;
type Slot = (typeof SLOTS)[number];

/**
 * The state's buffers, with the tensors that show them to the graph as its inputs and as its outputs. They are the same
 * ones: a step updates in place. That is safe because the optimizer comes last, after the norm of all gradients and so
 * after all else that reads weights, and its operators go through old and new values element by element.
 */
class StateBuffers {
  readonly state: TrainState;
  readonly feeds: Tensors = {};
  readonly fetches: Tensors = {};

  constructor(pieces: readonly Piece[], slots: readonly Slot[]) {
    const buffer = (kept: boolean): Float32Array => new Float32Array(kept ? total(pieces) : 0);
    this.state = { weights: buffer(true), m: buffer(slots.includes("m")), v: buffer(slots.includes("v")) };
    for (const name of ["weights", ...slots] as const) {
      Object.assign(this.feeds, views(name, pieces, this.state[name]));
      Object.assign(this.fetches, views(`${name}_out`, pieces, this.state[name]));
    }
  }
}

class OnnxTrainSession extends OnnxGraph implements TrainSession {
  readonly #batch: BatchFeeds;
  readonly #slots: readonly Slot[];
  readonly #lr = new Float32Array(1);
  readonly #step = new Float32Array(1);
  readonly #loss = new Float32Array(1);
  readonly #gradNorm = new Float32Array(1);
  #terms: Tensors = {};
  readonly #buffers: StateBuffers;

  constructor(session: ort.InferenceSession) {
    super(session);
    this.#batch = new BatchFeeds(session);
    this.#slots = SLOTS.filter((slot) => session.inputNames.includes(`${slot}.0`));
    this.#buffers = new StateBuffers(this.pieces, this.#slots);
  }

  get parameters(): number {
    return total(this.pieces);
  }

  load(state: TrainState): void {
    const kept = ["weights", ...this.#slots] as const;
    for (const key of kept) {
      if (state[key].length !== this.parameters) {
        throw new RangeError(`the graph has ${this.parameters} parameters, ${key} has ${state[key].length}`);
      }
    }
    for (const key of kept) this.#buffers.state[key].set(state[key]);
  }

  setTerms({ anchor, mu, correction }: RoundTerms): void {
    const vector = (name: string, values: Float32Array | undefined): Tensors =>
      values === undefined ? {} : views(name, this.session.inputNames.includes(`${name}.0`) ? this.pieces : [], values);
    this.#terms = {
      ...vector("anchor", anchor),
      ...vector("correction", correction),
      ...(mu === undefined ? {} : { mu: float(Float32Array.of(mu), []) }),
    };
  }

  async step(batch: Batch, lr: number, step: number): Promise<{ loss: number; gradNorm: number }> {
    this.#batch.set(batch);
    this.#lr[0] = lr;
    this.#step[0] = step;
    const scalars = { lr: float(this.#lr, []), step: float(this.#step, []) };
    await this.session.run(
      { ...this.#batch.feeds, ...this.#buffers.feeds, ...this.frozen, ...this.#terms, ...scalars },
      { loss: float(this.#loss, []), grad_norm: float(this.#gradNorm, []), ...this.#buffers.fetches },
    );
    return { loss: this.#loss[0] ?? NaN, gradNorm: this.#gradNorm[0] ?? NaN };
  }

  state(): TrainState {
    const { weights, m, v } = this.#buffers.state;
    return { weights: weights.slice(), m: m.slice(), v: v.slice() };
  }
}

class OnnxEvalSession extends OnnxGraph implements EvalSession {
  readonly #batch = new BatchFeeds(this.session);

  async evaluate(weights: Float32Array, batch: Batch): Promise<{ lossSum: number; tokens: number }> {
    this.#batch.set(batch);
    const results = await this.session.run({ ...this.#batch.feeds, ...this.weights(weights) });
    return { lossSum: scalar(results, "loss_sum"), tokens: scalar(results, "token_count") };
  }
}

const int64 = (value: number): ort.Tensor => new ort.Tensor("int64", BigInt64Array.of(BigInt(value)), [1]);

class OnnxLogitsSession extends OnnxGraph implements LogitsSession {
  readonly #dims = dimensions(this.session, "tokens");
  readonly seqLen = this.#dims[1] ?? 0;
  readonly #window = new BigInt64Array(this.seqLen);

  async logits(weights: Float32Array, tokens: Int32Array): Promise<Float32Array> {
    const seen = tokens.subarray(Math.max(0, tokens.length - this.seqLen));
    if (seen.length === 0) throw new RangeError("at least one token is needed");
    this.#window.fill(0n);
    fill(this.#window.subarray(0, seen.length), seen);
    const results = await this.session.run({
      tokens: new ort.Tensor("int64", this.#window, this.#dims),
      position: int64(seen.length - 1),
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

class OnnxDecodeSession extends OnnxGraph implements DecodeSession {
  readonly capacity: number;
  readonly #parts: readonly CachePart[];
  readonly #past: Tensors = {};
  readonly #chunk = dimensions(this.session, "tokens")[1] ?? 1;
  #filled = 0;

  constructor(session: ort.InferenceSession) {
    super(session);
    const inputs = session.inputNames.filter((name) => name.startsWith("past_"));
    this.#parts = inputs.map((name) => {
      const dims = dimensions(session, name);
      const data = new Float32Array(product(dims));
      this.#past[name] = float(data, dims);
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
      tokens: new ort.Tensor("int64", window, [1, this.#chunk]),
      filled: int64(this.#filled),
      position: int64(tokens.length - 1),
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

async function measureMatmul(session: ort.InferenceSession, n: number, seconds: number): Promise<number> {
  const a = float(new Float32Array(n * n).fill(0.5), [n, n]);
  const out = float(new Float32Array(n * n), [n, n]);
  const run = (): Promise<unknown> => session.run({ a, b: a }, { product: out });
  await run();
  const durationsMs: number[] = [];
  const deadlineMs = performance.now() + seconds * 1000;
  do {
    const startMs = performance.now();
    await run();
    durationsMs.push(performance.now() - startMs);
  } while (performance.now() < deadlineMs);
  // The median: one run that had to wait for a core says nothing about the device.
  const medianMs = durationsMs.sort((x, y) => x - y)[durationsMs.length >> 1] ?? NaN;
  return (2 * n ** 3) / (medianMs * 1e6);
}

/** The native CPU runtime. The same graph, state and batch give the same bits on every run with the same threads. */
export function openOnnxBackend({ threads }: OnnxOptions): Promise<Backend> {
  const open = (graph: Uint8Array): Promise<ort.InferenceSession> =>
    ort.InferenceSession.create(graph, {
      executionProviders: ["cpu"],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      executionMode: "sequential",
      graphOptimizationLevel: "all",
      // The pattern's block comes on top of what the first run took: nearly twice the memory, and no faster.
      enableMemPattern: false,
      logSeverityLevel: 3,
      // Waiting threads sleep instead of spinning: several agents share the cores of one machine.
      extra: { session: { intra_op: { allow_spinning: "0" }, inter_op: { allow_spinning: "0" } } },
    });
  return Promise.resolve({
    name: "onnxruntime-cpu",
    train: async (graph) => new OnnxTrainSession(await open(graph)),
    eval: async (graph) => new OnnxEvalSession(await open(graph)),
    logits: async (graph) => new OnnxLogitsSession(await open(graph)),
    decode: async (graph) => new OnnxDecodeSession(await open(graph)),
    matmulGflops: async (n, seconds) => {
      const session = await open(buildMatmulGraph(n));
      try {
        return await measureMatmul(session, n, seconds);
      } finally {
        await session.release();
      }
    },
  });
}
