import type { LaneGraphs } from "#common/graph/lanes.js";
import type { Batch, FrozenTensors, RoundTerms, TrainSession, TrainState } from "./backend.js";
import { BatchFeeds, FrozenFeeds, piecesOf, type Piece, shapedAs, views } from "./buffers.js";
import type { Kernels } from "./kernels/module.js";
import type { OrtRuntime, OrtSession, Tensors } from "./runtime.js";
import { StepVectors } from "./step-vectors.js";

/** Waits for all runs before it tells of one's failure: they write into what the next step uses. */
async function together(runs: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(runs)).find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
}

/** Rows of a batch that one lane takes, and what it gives. */
interface Lane {
  readonly batch: BatchFeeds;
  readonly lossSum: Float32Array;
  readonly outputs: Tensors;
}

function makeLane(runtime: OrtRuntime, session: OrtSession, pieces: readonly Piece[], gradient: Float32Array): Lane {
  const lossSum = new Float32Array(1);
  const sum = new runtime.Tensor("float32", lossSum, []);
  const outputs = { loss_sum: sum, ...views(runtime, "gradient", pieces, gradient) };
  return { batch: new BatchFeeds(runtime, session), lossSum, outputs };
}

/** A part of a batch's rows. */
function rowsOf(batch: Batch, lane: number, lanes: number): Batch {
  const part = (values: Int32Array): Int32Array => {
    const size = values.length / lanes;
    return values.subarray(lane * size, (lane + 1) * size);
  };
  const { tokens, targets, segments } = batch;
  return {
    tokens: part(tokens),
    targets: part(targets),
    ...(segments === undefined ? {} : { segments: part(segments) }),
  };
}

/** The step of a training graph, run in lanes side by side; see common/graph/lanes.ts. */
class LaneTrainSession implements TrainSession {
  readonly #gradient: OrtSession;
  readonly #vectors: StepVectors;
  readonly #weights: Tensors;
  readonly #lanes: readonly Lane[];
  readonly #frozen: FrozenFeeds;
  readonly #whole = new Float32Array(1);
  readonly #wholeFeeds: Tensors;

  constructor(runtime: OrtRuntime, gradient: OrtSession, graphs: LaneGraphs, kernels: Kernels) {
    this.#gradient = gradient;
    this.#frozen = new FrozenFeeds(runtime, gradient);
    this.#vectors = new StepVectors(kernels, graphs);
    const pieces = piecesOf(gradient, "weights");
    this.#weights = views(runtime, "weights", pieces, this.#vectors.trained.buffers.weights);
    const shaped = shapedAs(gradient, "gradient", pieces);
    this.#lanes = this.#vectors.gradients.map((flat) => makeLane(runtime, gradient, shaped, flat));
    this.#wholeFeeds = { whole: new runtime.Tensor("float32", this.#whole, []) };
  }

  get parameters(): number {
    return this.#vectors.trained.parameters;
  }

  get frozenParameters(): number {
    return this.#frozen.parameters;
  }

  load(state: TrainState): void {
    this.#vectors.trained.load(state);
  }

  loadFrozen(values: Float32Array | FrozenTensors): void {
    this.#frozen.load(values);
  }

  setTerms(terms: RoundTerms): void {
    this.#vectors.setTerms(terms);
  }

  async step(batch: Batch, lr: number, step: number): Promise<{ loss: number; gradNorm: number }> {
    this.#vectors.requireTerms();
    const targets = batch.targets.reduce((count, target) => count + (target >= 0 ? 1 : 0), 0);
    this.#whole[0] = targets;
    this.#lanes.forEach((lane, i) => {
      lane.batch.set(rowsOf(batch, i, this.#lanes.length));
    });
    const shared = { ...this.#weights, ...this.#frozen.feeds, ...this.#wholeFeeds };
    await together(this.#lanes.map((lane) => this.#gradient.runInto({ ...lane.batch.feeds, ...shared }, lane.outputs)));
    const gradNorm = this.#vectors.reduce();
    this.#vectors.update(lr, step, gradNorm);
    const lossSum = this.#lanes.reduce((all, lane) => all + (lane.lossSum[0] ?? NaN), 0);
    return { loss: lossSum / Math.max(targets, 1), gradNorm };
  }

  state(): TrainState {
    return this.#vectors.trained.copy();
  }

  async dispose(): Promise<void> {
    await this.#gradient.release();
  }
}

/** @param runtime whose sessions' runs go on side by side */
export async function openLanes(runtime: OrtRuntime, graphs: LaneGraphs, kernels: Kernels): Promise<TrainSession> {
  const gradient = await runtime.open(graphs.gradient);
  try {
    return new LaneTrainSession(runtime, gradient, graphs, kernels);
  } catch (error) {
    await gradient.release();
    throw error;
  }
}
