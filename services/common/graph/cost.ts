import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { isLaned, laneCount, laneModel } from "./lanes.js";
import { type ParameterLayout, parameterLayout } from "./layout.js";
import { type MemoryDemand, memoryOf } from "./memory.js";
import { optimizerOf } from "./optimizers/table.js";
import { trainModel, type TrainGraphOptions } from "./train.js";
import { type Variant, variantLayout } from "./variant.js";

/** What of a training step's options changes what it takes. */
export interface CostOptions extends BatchShape {
  readonly variant?: Variant;
  readonly packed?: boolean;
  readonly accumulate?: number;
  readonly recompute?: boolean;
  readonly proximal?: boolean;
  /** SCAFFOLD: a correction beside the weights. */
  readonly corrected?: boolean;
  /** AdamW by default. */
  readonly optimizer?: "adamw" | "sgd";
  /** Of SGD. */
  readonly momentum?: number;
  /** Threads of the device, which may run a step in as many lanes; 1 by default. */
  readonly threads?: number;
}

export interface Cost {
  /** Of the model. */
  readonly parameters: number;
  /** Values that are trained. */
  readonly trainable: number;
  /** Floating-point operations of one step: the passes over the products, and the optimizer. */
  readonly flopsPerStep: number;
  /** Memory the step needs beyond the bare process, in bytes. */
  readonly peakBytes: number;
}

/** AdamW and clipping, per parameter. */
const OPTIMIZER_FLOPS = 16;

/**
 * Fitted to the peaks of 18 steps of 100 MB to 2.5 GB: what a session takes, and the runtime for each node of a graph. The
 * former was fitted again to the six steps of the test, when the optimizer's kernels came.
 */
const SESSION_BYTES = 52e6;
const NODE_BYTES = 12e3;
/** Memory is handed out in pieces that do not always fit. */
const FRAGMENTATION = 1.06;
const FLOAT_BYTES = 4;

/** The rest of a step's options, whose values change nothing of what it takes. */
function trainOptions(options: CostOptions): TrainGraphOptions {
  const common = { ...options, clipNorm: 1, weightDecay: 0.1 };
  return options.optimizer === "sgd"
    ? { ...common, optimizer: "sgd", momentum: options.momentum ?? 0 }
    : { ...common, optimizer: "adamw", beta1: 0.9, beta2: 0.99, eps: 1e-8 };
}

/** Bytes of a step in lanes: each has what its rows take and a gradient of its own. */
function laneMemory(
  config: ModelConfig,
  options: TrainGraphOptions,
  layout: ParameterLayout,
  lanes: number,
): MemoryDemand {
  const { inputBytes, workingBytes, constantBytes, nodes } = memoryOf(laneModel(config, options, lanes, true));
  const terms = [options.proximal, options.corrected].filter((has) => has === true).length;
  // A term's vector is the caller's and a copy.
  const vectors = optimizerOf(options).slots.length + 2 * terms + lanes;
  return {
    inputBytes: inputBytes + FLOAT_BYTES * layout.total * vectors,
    workingBytes: lanes * workingBytes,
    constantBytes,
    nodes,
  };
}

/** @param lanes undefined where the step stays whole */
function graphMemory(config: ModelConfig, options: CostOptions, lanes: number | undefined): MemoryDemand {
  const whole = trainOptions(options);
  if (lanes === undefined) return memoryOf(trainModel(config, whole));
  return laneMemory(config, whole, variantLayout(config, options.variant).trainable, lanes);
}

/** Models of this number of blocks and of one more tell what any number takes. */
const FEW_LAYERS = 2;

/** Whether a variant tells blocks apart by their numbers. */
const namesBlocks = ({ lora, trained = [] }: Variant): boolean =>
  [...(lora?.targets ?? []), ...trained].some((name) => /\d/.test(name));

/**
 * Memory of the step's graph. What it takes grows by the same amount with each block, so that graphs of few blocks are
 * gone through instead of the whole.
 */
function stepMemory(config: ModelConfig, options: CostOptions, lanes: number | undefined): MemoryDemand {
  const at = (layers: number): MemoryDemand => graphMemory({ ...config, layers }, options, lanes);
  if (config.layers <= FEW_LAYERS + 1 || namesBlocks(options.variant ?? {})) return at(config.layers);
  const [few, more] = [at(FEW_LAYERS), at(FEW_LAYERS + 1)];
  const extend = (key: keyof MemoryDemand): number => few[key] + (more[key] - few[key]) * (config.layers - FEW_LAYERS);
  return {
    inputBytes: extend("inputBytes"),
    workingBytes: extend("workingBytes"),
    constantBytes: extend("constantBytes"),
    nodes: extend("nodes"),
  };
}

/**
 * What one training step costs, for planning: operations from the products' sizes, memory from the graph itself.
 * @throws RangeError for options that no graph can be built from
 */
export function estimateCost(config: ModelConfig, options: CostOptions): Cost {
  const parameters = parameterLayout(config).total;
  const trainable = variantLayout(config, options.variant).trainable.total;
  // Frozen weights need no gradient of their own: a forward and a backward pass instead of three passes.
  const passes = (trainable < parameters ? 2 : 3) + (options.recompute === true ? 1 : 0);
  const { inputBytes, workingBytes, constantBytes, nodes } = stepMemory(
    config,
    options,
    isLaned(trainable) ? laneCount(options, options.threads ?? 1) : undefined,
  );
  return {
    parameters,
    trainable,
    flopsPerStep: 2 * passes * familyOf(config).multiplyAdds(config, options) + OPTIMIZER_FLOPS * trainable,
    peakBytes: Math.ceil(
      inputBytes + constantBytes + FRAGMENTATION * workingBytes + SESSION_BYTES + NODE_BYTES * nodes,
    ),
  };
}
