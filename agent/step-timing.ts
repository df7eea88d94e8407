import type { ModelConfig } from "#common/graph/config.js";
import { encodeModel } from "#common/graph/encoding.js";
import { quantizedSize } from "#common/graph/quantize.js";
import { buildTrainGraph, type TrainGraphOptions, trainModel } from "#common/graph/train.js";
import { type Variant, type VariantLayout, variantLayout } from "#common/graph/variant.js";
import type { FrozenTensors } from "./backend/backend.js";
import { anyValues, lanesOf, median, type Workbench } from "./backend/node-timing.js";

/** What is trained, and on how much in a step. */
export interface StepShape {
  readonly batch: number;
  readonly seqLen: number;
  readonly variant: Variant;
}

/** The options of a step of AdamW; their values change nothing of what it takes. */
export const stepOptions = ({ batch, seqLen, variant }: StepShape): TrainGraphOptions => ({
  ...{ batch, seqLen, variant },
  ...{ clipNorm: 1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1 },
});

/** Weights of no meaning, as large as trained ones. */
const anyWeights = (length: number): Float32Array => anyValues(length, -0.04, 0.04);

function anyFrozen({ frozen, quantized }: VariantLayout): FrozenTensors {
  const sizes = quantized.map(quantizedSize);
  return {
    plain: anyWeights(frozen.total),
    packed: new Uint8Array(sizes.reduce((sum, { bytes }) => sum + bytes, 0)).fill(0x79),
    scales: new Float32Array(sizes.reduce((sum, { scales }) => sum + scales, 0)).fill(0.02),
  };
}

/** A training session whose steps can be timed. */
export interface TimedStep {
  /** Mean milliseconds of the steps that begin within so many, one at least; a step before them warms the caches. */
  time(forMs: number): Promise<number>;
  dispose(): Promise<void>;
}

/** Opens a model's training step as a job does. @param graph of the config and shape */
export async function openStep(
  bench: Workbench,
  graph: Uint8Array,
  config: ModelConfig,
  { batch, seqLen, variant }: StepShape,
): Promise<TimedStep> {
  const session = await bench.train(graph);
  session.loadFrozen(anyFrozen(variantLayout(config, variant)));
  const zeros = new Float32Array(session.parameters);
  session.load({ weights: anyWeights(session.parameters), m: zeros, v: zeros });
  const tokens = Int32Array.from({ length: batch * seqLen }, (_, i) => (i * 7919) % config.vocabSize);
  let step = 0;
  const run = (): Promise<unknown> => session.step({ tokens, targets: tokens }, 1e-4, ++step);
  return {
    time: async (forMs) => {
      await run();
      const startMs = bench.nowMs();
      let runs = 0;
      do {
        await run();
        runs++;
      } while (bench.nowMs() < startMs + forMs);
      return (bench.nowMs() - startMs) / runs;
    },
    dispose: () => session.dispose(),
  };
}

const MOST_LAYERS = 8;
/**
 * Layers of the deeper of the two models that are timed: two thirds of what the model has, as what the difference of
 * two figures is wrong by grows with the distance it is carried; and not more than is quick to run.
 */
const deepLayers = (layers: number): number => Math.min(Math.ceil((2 * layers) / 3), MOST_LAYERS);

/** A prediction that grows surer with every round. */
export interface StepForecast {
  /** Times the shallow models for about so many milliseconds each. @returns what this round alone says */
  round(forMs: number): Promise<number>;
  /** Milliseconds of a step of the whole model, from all rounds, of which there must be one. */
  stepMs(): number;
  dispose(): Promise<void>;
}

/**
 * How long a step of a model takes, from the steps of the same model with one layer and with a few: layers are alike, so
 * what one more of them adds, all others add too. Everything that a step costs beside its arithmetic is in the figures:
 * calls, memory, caches, lanes that wait for each other. A machine's speed drifts, so both are timed in turns and the
 * medians compared. The whole model's step is never run.
 */
export async function openForecast(bench: Workbench, config: ModelConfig, shape: StepShape): Promise<StepForecast> {
  const options = stepOptions(shape);
  const isLaned = (await lanesOf(bench, buildTrainGraph(config, options))) !== undefined;
  const openAt = (layers: number): Promise<TimedStep> => {
    const shallow = { ...config, layers };
    // Without its description a graph is run whole, as the whole model's is, even if the shallow one's could be divided.
    const graph = isLaned ? buildTrainGraph(shallow, options) : encodeModel(trainModel(shallow, options));
    return openStep(bench, graph, shallow, shape);
  };
  const deep = deepLayers(config.layers);
  const depths = deep === 1 ? [1] : [1, deep];
  const steps: TimedStep[] = [];
  for (const layers of depths) steps.push(await openAt(layers));
  const took = steps.map((): number[] => []);
  const extrapolate = ([first = NaN, second = first]: readonly number[]): number =>
    // An unlucky pair must not make layers cost less than nothing.
    deep === 1 ? first : first + ((config.layers - 1) * Math.max(0, second - first)) / (deep - 1);
  return {
    round: async (forMs) => {
      const now: number[] = [];
      for (const step of steps) now.push(await step.time(forMs));
      now.forEach((ms, i) => took[i]?.push(ms));
      return extrapolate(now);
    },
    stepMs: () => extrapolate(took.map(median)),
    dispose: async () => {
      for (const step of steps) await step.dispose();
    },
  };
}
