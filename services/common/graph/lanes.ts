import { GraphBuilder, type Model } from "./builder.js";
import { parseModelConfig } from "./config.js";
import { readMetadata } from "./decoding.js";
import { encodeModel } from "./encoding.js";
import type { ModelConfig } from "./families/table.js";
import type { Piece } from "./layout.js";
import { inputBatch, learn } from "./learning.js";
import { buildTrainGraph, STEP_METADATA, type TrainGraphOptions } from "./train.js";
import { bindVariant, variantLayout } from "./variant.js";

/**
 * A training step in lanes that run side by side, one for each core: each takes a part of the batch's rows forward and
 * back. Inside of a lane nothing is divided between threads, so no operator waits for a core and each stays with its
 * cache. What comes after all gradients is no part of the graph: whoever runs the lanes adds up, clips and updates by the
 * options. The result is that of the whole step but for the order in which gradients are added.
 */
export interface LaneGraphs {
  /** One, where all threads share in each operator. */
  readonly lanes: number;
  /**
   * A lane's rows -> `loss_sum` [] and `gradient.i`, as in a training graph, with `whole` [] beside: the number of
   * unmasked targets of all lanes.
   */
  readonly gradient: Uint8Array;
  readonly options: TrainGraphOptions;
  /** Of the trainable vector, one after the other. */
  readonly pieces: readonly Pick<Piece, "size" | "decay">[];
}

/** Where more is trained the lanes' own gradients would weigh on memory. */
const MOST_PARAMETERS = 32_000_000;
/** Runs take threads of the process's pool, which are four; files and names need one. */
const MOST_LANES = 3;

/**
 * The graph of a lane's rows before it is written, with the shapes of all its values.
 * @param serial whether a lane has one thread
 */
export function laneModel(config: ModelConfig, options: TrainGraphOptions, lanes: number, serial: boolean): Model {
  const g = new GraphBuilder({ serial });
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

/** Whether a step is run in lanes, one or several, where `trainable` values are trained. */
export const isLaned = (trainable: number): boolean => trainable <= MOST_PARAMETERS;

/** Into how many lanes the rows of a step are divided on so many threads. */
export function laneCount(
  { batch, accumulate = 1 }: Pick<TrainGraphOptions, "batch" | "accumulate">,
  threads: number,
): number {
  const rows = batch / accumulate;
  for (let lanes = Math.min(rows, threads, MOST_LANES); lanes > 1; lanes--) if (rows % lanes === 0) return lanes;
  return 1;
}

/**
 * The step of a training graph in lanes, or undefined where it stays whole: for many trained parameters, and for a graph
 * that does not say truly what it was built from.
 */
export function laneGraphs(graph: Uint8Array, threads: number): LaneGraphs | undefined {
  const built = stepOf(graph);
  if (built === undefined) return undefined;
  const { config, options } = built;
  const { trainable } = variantLayout(config, options.variant);
  if (!isLaned(trainable.total)) return undefined;
  const lanes = laneCount(options, threads);
  const gradient = encodeModel(laneModel(config, options, lanes, Math.floor(threads / lanes) === 1));
  return { lanes, gradient, options, pieces: trainable.pieces };
}
