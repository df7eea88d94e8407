import { flatBlocks } from "./blocks.js";
import { GraphBuilder, type Model, type Value } from "./builder.js";
import { parseModelConfig } from "./config.js";
import { readMetadata } from "./decoding.js";
import { encodeModel } from "./encoding.js";
import type { ModelConfig } from "./families/table.js";
import type { Piece } from "./layout.js";
import { inputBatch, learn } from "./learning.js";
import { add, mul, squareSum, sub, sum } from "./ops.js";
import { optimizerOf } from "./optimizers/table.js";
import { buildTrainGraph, emitUpdates, STEP_METADATA, type TrainGraphOptions } from "./train.js";
import { inputPieces } from "./parameters.js";
import { bindVariant, variantLayout } from "./variant.js";

/**
 * A training step in lanes that run side by side, one for each core: each takes a part of the batch's rows forward and
 * back and, when all have, adds up and updates a part of the pieces. Inside of a lane nothing is divided between threads,
 * so no operator waits for a core and each stays with its cache. The result is that of the whole step but for the order
 * in which gradients are added.
 */
export interface LaneGraphs {
  readonly lanes: number;
  /**
   * A lane's rows -> `loss_sum` [] and `gradient.i`, as in a training graph, with `whole` [] beside: the number of
   * unmasked targets of all lanes.
   */
  readonly gradient: Uint8Array;
  /** A share of the pieces for each lane. */
  readonly shares: readonly LaneShare[];
  /** The norm that gradients are clipped to. */
  readonly clipNorm: number;
}

export interface LaneShare {
  /** Which pieces of the trainable vector; the graphs' inputs and outputs count from 0. */
  readonly pieces: readonly number[];
  /** `lane_k.i` of all lanes, by option `weights.i`, `anchor.i` and `mu` -> `total.i` and `square_sum` []. */
  readonly sum: Uint8Array;
  /** `total.i`, `weights.i`, slots, by option `correction.i`, lr, step, and `scale` [] of clipping -> the training graph's. */
  readonly update: Uint8Array;
}

/** Where more is trained the lanes' own gradients would weigh on memory. */
const MOST_PARAMETERS = 32_000_000;
/** Runs take threads of the process's pool, which are four; files and names need one. */
const MOST_LANES = 3;

/** Deals pieces out so that each share has about as many values. */
function dealPieces(pieces: readonly Piece[], lanes: number): number[][] {
  const shares = Array.from({ length: lanes }, () => ({ size: 0, pieces: [] as number[] }));
  const bySize = pieces.map((piece, i) => ({ i, size: piece.size })).sort((a, b) => b.size - a.size || a.i - b.i);
  for (const { i, size } of bySize) {
    const least = shares.reduce((best, share) => (share.size < best.size ? share : best));
    least.pieces.push(i);
    least.size += size;
  }
  return shares.map((share) => share.pieces.sort((a, b) => a - b));
}

/** The graph of a lane's rows before it is written, with the shapes of all its values. */
export function laneModel(config: ModelConfig, options: TrainGraphOptions, lanes: number): Model {
  const g = new GraphBuilder();
  const layout = variantLayout(config, options.variant);
  const batch = inputBatch(g, { ...options, batch: options.batch / lanes }, options.packed === true);
  const whole = g.input("whole", "float32", []);
  const model = {
    ...bindVariant(g, layout),
    pieceList: layout.trainable.pieces,
    recompute: options.recompute === true,
  };
  const { lossSum, gradients } = learn(g, config, model, batch, options.accumulate ?? 1, whole);
  g.output("loss_sum", lossSum);
  gradients.forEach((gradient, i) => g.output(`gradient.${i}`, gradient));
  return g.model();
}

function buildSum(pieces: readonly Piece[], lanes: number, proximal: boolean): Uint8Array {
  const g = new GraphBuilder();
  const parts = Array.from({ length: lanes }, (_, lane) => inputPieces(g, { pieces }, `lane_${lane}`));
  // FedProx, as in the training graph.
  const pulls = proximal ? [inputPieces(g, { pieces }, "weights"), inputPieces(g, { pieces }, "anchor")] : [];
  const mu = proximal ? g.input("mu", "float32", []) : undefined;
  const squares = pieces.map((_, i) => {
    const inputs = [...parts, ...pulls].map((values) => values[i] as Value);
    const [total, square] = flatBlocks(g, inputs, (inner, blocks) => {
      const [first, ...rest] = blocks.slice(0, lanes) as [Value, ...Value[]];
      const [weights, anchor] = blocks.slice(lanes);
      let whole = rest.reduce((sum, part) => add(inner, sum, part), first);
      if (weights && anchor && mu) whole = add(inner, whole, mul(inner, sub(inner, weights, anchor), mu));
      return [whole, squareSum(inner, whole)];
    }) as [Value, Value];
    g.output(`total.${i}`, total);
    return square;
  });
  g.output("square_sum", sum(g, squares));
  return g.encode();
}

function buildUpdate(pieces: readonly Piece[], options: TrainGraphOptions): Uint8Array {
  const g = new GraphBuilder();
  const optimizer = optimizerOf(options);
  const [gradients, weights] = [inputPieces(g, { pieces }, "total"), inputPieces(g, { pieces }, "weights")];
  const slots = optimizer.slots.map((slot) => inputPieces(g, { pieces }, slot));
  const corrections = options.corrected === true ? inputPieces(g, { pieces }, "correction") : undefined;
  const [lr, step, scale] = ["lr", "step", "scale"].map((name) => g.input(name, "float32", [])) as [
    Value,
    Value,
    Value,
  ];
  const update = optimizer.prepare(g, { lr, step, gradientScale: corrections === undefined ? scale : g.scalar(1) });
  emitUpdates(g, pieces, optimizer.slots, { gradients, weights, slots, corrections, gradientScale: scale }, update);
  return g.encode();
}

interface BuiltFrom {
  readonly config: ModelConfig;
  readonly options: TrainGraphOptions;
}

const isSame = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((byte, i) => byte === b[i]);

/**
 * What a training graph's file was built from, if it says so and that is the truth: built again, it has the same bytes.
 * A graph of another version, or of an unknown maker, is nothing but its nodes.
 */
function stepOf(graph: Uint8Array): BuiltFrom | undefined {
  const text = readMetadata(graph, STEP_METADATA);
  if (text === undefined) return undefined;
  try {
    const { config, options } = JSON.parse(text) as { config: unknown; options: TrainGraphOptions };
    const parsed = parseModelConfig(config);
    if (!parsed.ok || !isSame(buildTrainGraph(parsed.config, options), graph)) return undefined;
    return { config: parsed.config, options };
  } catch {
    return undefined;
  }
}

/** Into how many lanes the rows of a step are divided on so many threads, where `trainable` values are trained; 1 for none. */
export function laneCount(
  { batch, accumulate = 1 }: Pick<TrainGraphOptions, "batch" | "accumulate">,
  trainable: number,
  threads: number,
): number {
  const rows = batch / accumulate;
  if (trainable > MOST_PARAMETERS) return 1;
  for (let lanes = Math.min(rows, threads, MOST_LANES); lanes > 1; lanes--) if (rows % lanes === 0) return lanes;
  return 1;
}

/**
 * The step of a training graph in lanes, or undefined where it stays whole: on one thread, for a batch that cannot be
 * divided, for many trained parameters, and for a graph that does not say truly what it was built from.
 */
export function laneGraphs(graph: Uint8Array, threads: number): LaneGraphs | undefined {
  const built = threads > 1 ? stepOf(graph) : undefined;
  if (built === undefined) return undefined;
  const { config, options } = built;
  const { trainable } = variantLayout(config, options.variant);
  const lanes = laneCount(options, trainable.total, threads);
  if (lanes === 1) return undefined;
  const shares = dealPieces(trainable.pieces, lanes).filter((share) => share.length > 0);
  return {
    lanes,
    gradient: encodeModel(laneModel(config, options, lanes)),
    clipNorm: options.clipNorm,
    shares: shares.map((share) => {
      const pieces = share.map((i) => trainable.pieces[i] as Piece);
      return {
        pieces: share,
        sum: buildSum(pieces, lanes, options.proximal === true),
        update: buildUpdate(pieces, options),
      };
    }),
  };
}
