import * as ort from "onnxruntime-node";
import { buildMatmulGraph } from "#common/graph/matmul.js";
import type { Backend, Batch, EvalSession, LogitsSession, TrainSession, TrainState } from "./backend.js";

export interface OnnxOptions {
  /** Threads inside one operator, a whole number from 1. */
  readonly threads: number;
}

const float = (data: Float32Array, dims: readonly number[]): ort.Tensor => new ort.Tensor("float32", data, dims);

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

/** Token and target buffers of a batch input. */
class BatchFeeds {
  readonly #tokens: BigInt64Array;
  readonly #targets: BigInt64Array;
  readonly feeds: { tokens: ort.Tensor; targets: ort.Tensor };

  constructor(session: ort.InferenceSession) {
    const dims = dimensions(session, "tokens");
    const size = dims.reduce((product, d) => product * d, 1);
    this.#tokens = new BigInt64Array(size);
    this.#targets = new BigInt64Array(size);
    this.feeds = {
      tokens: new ort.Tensor("int64", this.#tokens, dims),
      targets: new ort.Tensor("int64", this.#targets, dims),
    };
  }

  set(batch: Batch): void {
    fill(this.#tokens, batch.tokens);
    fill(this.#targets, batch.targets);
  }
}

interface Piece {
  readonly dims: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** Where the graph's inputs `weights.0`, `weights.1`, ... lie in the flat vector: one after the other. */
function weightPieces(session: ort.InferenceSession): Piece[] {
  let end = 0;
  const count = session.inputNames.filter((name) => name.startsWith("weights.")).length;
  return Array.from({ length: count }, (_, i) => {
    const dims = dimensions(session, `weights.${i}`);
    const begin = end;
    end += dims.reduce((product, d) => product * d, 1);
    return { dims, begin, end };
  });
}

/** Tensors `<name>.0`, `<name>.1`, ... that are views of one flat vector, which is not copied. */
function views(name: string, pieces: readonly Piece[], flat: Float32Array): Record<string, ort.Tensor> {
  const size = pieces.at(-1)?.end ?? 0;
  if (flat.length !== size) throw new RangeError(`the graph has ${size} parameters, the vector has ${flat.length}`);
  return Object.fromEntries(
    pieces.map(({ dims, begin, end }, i) => [`${name}.${i}`, float(flat.subarray(begin, end), dims)]),
  );
}

/** One set of state buffers, with the tensors that show it to the graph as its inputs and as its outputs. */
class StateBuffers {
  readonly state: TrainState;
  readonly feeds: Record<string, ort.Tensor>;
  readonly fetches: Record<string, ort.Tensor>;

  constructor(pieces: readonly Piece[]) {
    const buffer = (): Float32Array => new Float32Array(pieces.at(-1)?.end ?? 0);
    const [weights, m, v] = [buffer(), buffer(), buffer()];
    this.state = { weights, m, v };
    this.feeds = { ...views("weights", pieces, weights), ...views("m", pieces, m), ...views("v", pieces, v) };
    this.fetches = {
      ...views("weights_out", pieces, weights),
      ...views("m_out", pieces, m),
      ...views("v_out", pieces, v),
    };
  }
}

/** Two sets of state buffers: a step reads one and writes the other, then they change places. */
class OnnxTrainSession implements TrainSession {
  readonly parameters: number;
  readonly #session: ort.InferenceSession;
  readonly #batch: BatchFeeds;
  readonly #lr = new Float32Array(1);
  readonly #step = new Float32Array(1);
  readonly #loss = new Float32Array(1);
  readonly #gradNorm = new Float32Array(1);
  #current: StateBuffers;
  #next: StateBuffers;

  constructor(session: ort.InferenceSession) {
    this.#session = session;
    this.#batch = new BatchFeeds(session);
    const pieces = weightPieces(session);
    this.parameters = pieces.at(-1)?.end ?? 0;
    this.#current = new StateBuffers(pieces);
    this.#next = new StateBuffers(pieces);
  }

  load(state: TrainState): void {
    for (const key of ["weights", "m", "v"] as const) {
      if (state[key].length !== this.parameters) {
        throw new RangeError(`the graph has ${this.parameters} parameters, ${key} has ${state[key].length}`);
      }
    }
    for (const key of ["weights", "m", "v"] as const) this.#current.state[key].set(state[key]);
  }

  async step(batch: Batch, lr: number, step: number): Promise<{ loss: number; gradNorm: number }> {
    this.#batch.set(batch);
    this.#lr[0] = lr;
    this.#step[0] = step;
    await this.#session.run(
      { ...this.#batch.feeds, ...this.#current.feeds, lr: float(this.#lr, []), step: float(this.#step, []) },
      { loss: float(this.#loss, []), grad_norm: float(this.#gradNorm, []), ...this.#next.fetches },
    );
    [this.#current, this.#next] = [this.#next, this.#current];
    return { loss: this.#loss[0] ?? NaN, gradNorm: this.#gradNorm[0] ?? NaN };
  }

  state(): TrainState {
    const { weights, m, v } = this.#current.state;
    return { weights: weights.slice(), m: m.slice(), v: v.slice() };
  }

  async dispose(): Promise<void> {
    await this.#session.release();
  }
}

function evalSession(session: ort.InferenceSession): EvalSession {
  const batchFeeds = new BatchFeeds(session);
  const pieces = weightPieces(session);
  return {
    async evaluate(weights, batch) {
      batchFeeds.set(batch);
      const results = await session.run({ ...batchFeeds.feeds, ...views("weights", pieces, weights) });
      return { lossSum: scalar(results, "loss_sum"), tokens: scalar(results, "token_count") };
    },
    dispose: () => session.release(),
  };
}

function logitsSession(session: ort.InferenceSession): LogitsSession {
  const dims = dimensions(session, "tokens");
  const pieces = weightPieces(session);
  const seqLen = dims[1] ?? 0;
  const window = new BigInt64Array(seqLen);
  const position = new BigInt64Array(1);
  return {
    seqLen,
    async logits(weights, tokens) {
      const seen = tokens.subarray(Math.max(0, tokens.length - seqLen));
      if (seen.length === 0) throw new RangeError("at least one token is needed");
      window.fill(0n);
      fill(window.subarray(0, seen.length), seen);
      position[0] = BigInt(seen.length - 1);
      const results = await session.run({
        tokens: new ort.Tensor("int64", window, dims),
        position: new ort.Tensor("int64", position, [1]),
        ...views("weights", pieces, weights),
      });
      return floats(results, "logits");
    },
    dispose: () => session.release(),
  };
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
    eval: async (graph) => evalSession(await open(graph)),
    logits: async (graph) => logitsSession(await open(graph)),
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
