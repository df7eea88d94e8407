import type { Tensor } from "onnxruntime-common";
import { CLIP_EPS } from "#common/graph/train.js";
import type { LaneGraphs, LaneShare } from "#common/graph/lanes.js";
import type { Batch, FrozenTensors, RoundTerms, TrainSession, TrainState } from "./backend.js";
import {
  BatchFeeds,
  dimensions,
  FrozenFeeds,
  piecesOf,
  type Piece,
  shapedAs,
  TrainedVectors,
  views,
} from "./buffers.js";
import type { OrtRuntime, OrtSession, Tensors } from "./runtime.js";

/** Waits for all runs before it tells of one's failure: they write into what the next step uses. */
async function together(runs: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(runs)).find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
}

/** Rows of a batch that one lane takes, and what it gives. */
interface Lane {
  readonly batch: BatchFeeds;
  readonly lossSum: Float32Array;
  readonly gradient: Float32Array;
  readonly outputs: Tensors;
}

/** Pieces that one lane adds up and updates. */
interface Share {
  readonly sum: OrtSession;
  readonly update: OrtSession;
  readonly squareSum: Float32Array;
  readonly sumFeeds: Tensors;
  readonly sumOutputs: Tensors;
  readonly updateFeeds: Tensors;
  readonly updateOutputs: Tensors;
  /** Feeds of vectors that come with a round's terms. */
  term(name: "anchor" | "correction", flat: Float32Array): Tensors;
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
  readonly #runtime: OrtRuntime;
  readonly #gradient: OrtSession;
  readonly #pieces: readonly Piece[];
  readonly #vectors: TrainedVectors;
  readonly #weights: Tensors;
  readonly #lanes: readonly Lane[];
  readonly #shares: readonly Share[];
  readonly #frozen: FrozenFeeds;
  readonly #clipNorm: number;
  readonly #scalars = { whole: new Float32Array(1), lr: new Float32Array(1), step: new Float32Array(1) };
  readonly #scale = new Float32Array(1);
  #terms: { sum: Tensors; update: Tensors }[];
  #mu: Tensors = {};

  constructor(
    runtime: OrtRuntime,
    gradient: OrtSession,
    opened: readonly OpenedShare[],
    { lanes, clipNorm }: LaneGraphs,
  ) {
    this.#runtime = runtime;
    this.#gradient = gradient;
    this.#clipNorm = clipNorm;
    this.#frozen = new FrozenFeeds(runtime, gradient);
    this.#pieces = piecesOf(gradient, "weights");
    this.#vectors = new TrainedVectors(opened[0]?.update ?? gradient, this.#pieces);
    this.#weights = views(runtime, "weights", this.#pieces, this.#vectors.buffers.weights);
    this.#lanes = Array.from({ length: lanes }, () => this.#makeLane());
    this.#shares = opened.map((share) => this.#makeShare(share));
    this.#terms = this.#shares.map(() => ({ sum: {}, update: {} }));
  }

  get parameters(): number {
    return this.#vectors.parameters;
  }

  get frozenParameters(): number {
    return this.#frozen.parameters;
  }

  #scalar(data: Float32Array): Tensor {
    return new this.#runtime.Tensor("float32", data, []);
  }

  #makeLane(): Lane {
    const [lossSum, gradient] = [new Float32Array(1), new Float32Array(this.parameters)];
    const shaped = shapedAs(this.#gradient, "gradient", this.#pieces);
    const outputs = { loss_sum: this.#scalar(lossSum), ...views(this.#runtime, "gradient", shaped, gradient) };
    return { batch: new BatchFeeds(this.#runtime, this.#gradient), lossSum, gradient, outputs };
  }

  /** Tensors `<name>.0`, `<name>.1`, ... over the share's pieces of a flat vector, shaped as the graph has them. */
  #part(session: OrtSession, name: string, { pieces }: LaneShare, flat: Float32Array): Tensors {
    const tensors = pieces.map((piece, i) => {
      const { begin, end } = this.#pieces[piece] as Piece;
      const dims = dimensions(session, `${name}.${i}`);
      return [`${name}.${i}`, new this.#runtime.Tensor("float32", flat.subarray(begin, end), dims)] as const;
    });
    return Object.fromEntries(tensors);
  }

  #makeShare({ share, sum, update }: OpenedShare): Share {
    const first = this.#lanes[0] as Lane;
    const part = (session: OrtSession, name: string, flat: Float32Array): Tensors =>
      this.#part(session, name, share, flat);
    const lanes = this.#lanes.map(({ gradient }, lane) => part(sum, `lane_${lane}`, gradient));
    const pulled = sum.inputNames.includes("weights.0") ? part(sum, "weights", this.#vectors.buffers.weights) : {};
    const { kept, buffers } = this.#vectors;
    const squareSum = new Float32Array(1);
    return {
      ...{ sum, update, squareSum },
      sumFeeds: Object.assign({}, pulled, ...lanes) as Tensors,
      // Onto the first lane's gradient, element by element.
      sumOutputs: { ...part(sum, "total", first.gradient), square_sum: this.#scalar(squareSum) },
      updateFeeds: Object.assign(
        part(update, "total", first.gradient),
        ...kept.map((name) => part(update, name, buffers[name])),
      ) as Tensors,
      updateOutputs: Object.assign({}, ...kept.map((name) => part(update, `${name}_out`, buffers[name]))) as Tensors,
      term: (name, flat) => {
        const session = name === "anchor" ? sum : update;
        const values = session.inputNames.includes(`${name}.0`) ? this.parameters : 0;
        if (flat.length !== values) {
          throw new RangeError(`the graph has ${values} values of ${name}, the vector has ${flat.length}`);
        }
        return part(session, name, flat);
      },
    };
  }

  load(state: TrainState): void {
    this.#vectors.load(state);
  }

  loadFrozen(values: Float32Array | FrozenTensors): void {
    this.#frozen.load(values);
  }

  setTerms({ anchor, mu, correction }: RoundTerms): void {
    this.#terms = this.#shares.map((share) => ({
      sum: anchor === undefined ? {} : share.term("anchor", anchor),
      update: correction === undefined ? {} : share.term("correction", correction),
    }));
    this.#mu = mu === undefined ? {} : { mu: this.#scalar(Float32Array.of(mu)) };
  }

  async step(batch: Batch, lr: number, step: number): Promise<{ loss: number; gradNorm: number }> {
    const targets = batch.targets.reduce((count, target) => count + (target >= 0 ? 1 : 0), 0);
    this.#scalars.whole[0] = targets;
    this.#lanes.forEach((lane, i) => {
      lane.batch.set(rowsOf(batch, i, this.#lanes.length));
    });
    const shared = { ...this.#weights, ...this.#frozen.feeds, whole: this.#scalar(this.#scalars.whole) };
    await together(this.#lanes.map((lane) => this.#gradient.runInto({ ...lane.batch.feeds, ...shared }, lane.outputs)));
    await together(
      this.#shares.map(({ sum, sumFeeds, sumOutputs }, i) =>
        sum.runInto({ ...sumFeeds, ...this.#terms[i]?.sum, ...this.#mu }, sumOutputs),
      ),
    );
    const gradNorm = Math.sqrt(this.#shares.reduce((all, { squareSum }) => all + (squareSum[0] ?? NaN), 0));
    await this.#update(lr, step, gradNorm);
    const lossSum = this.#lanes.reduce((all, lane) => all + (lane.lossSum[0] ?? NaN), 0);
    return { loss: lossSum / Math.max(targets, 1), gradNorm };
  }

  async #update(lr: number, step: number, gradNorm: number): Promise<void> {
    this.#scalars.lr[0] = lr;
    this.#scalars.step[0] = step;
    this.#scale[0] = Math.min(1, this.#clipNorm / (gradNorm + CLIP_EPS));
    const scalars = {
      lr: this.#scalar(this.#scalars.lr),
      step: this.#scalar(this.#scalars.step),
      scale: this.#scalar(this.#scale),
    };
    await together(
      this.#shares.map(({ update, updateFeeds, updateOutputs }, i) =>
        update.runInto({ ...updateFeeds, ...this.#terms[i]?.update, ...scalars }, updateOutputs),
      ),
    );
  }

  state(): TrainState {
    return this.#vectors.copy();
  }

  async dispose(): Promise<void> {
    await this.#gradient.release();
    for (const { sum, update } of this.#shares) {
      await sum.release();
      await update.release();
    }
  }
}

interface OpenedShare {
  readonly share: LaneShare;
  readonly sum: OrtSession;
  readonly update: OrtSession;
}

/** @param runtime whose sessions' runs go on side by side */
export async function openLanes(runtime: OrtRuntime, graphs: LaneGraphs): Promise<TrainSession> {
  const open: OrtSession[] = [];
  const keep = async (graph: Uint8Array): Promise<OrtSession> => {
    const session = await runtime.open(graph);
    open.push(session);
    return session;
  };
  try {
    const gradient = await keep(graphs.gradient);
    const opened: OpenedShare[] = [];
    for (const share of graphs.shares) {
      opened.push({ share, sum: await keep(share.sum), update: await keep(share.update) });
    }
    return new LaneTrainSession(runtime, gradient, opened, graphs);
  } catch (error) {
    for (const session of open) await session.release();
    throw error;
  }
}
