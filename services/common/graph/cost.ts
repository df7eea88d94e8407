import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { parameterLayout } from "./layout.js";

export interface Cost {
  readonly parameters: number;
  /** Floating-point operations of one training step: forward, twice as much backward, and the optimizer. */
  readonly flopsPerStep: number;
  /** Memory the step needs beyond the bare process, in bytes. */
  readonly peakBytes: number;
}

const FLOAT_BYTES = 4;
/** AdamW and clipping, per parameter. */
const OPTIMIZER_FLOPS = 16;
/**
 * Flat vectors alive at the step's end: weights, m and v going in and coming out, the weights as tensors, the gradient
 * in pieces and joined, and two intermediate results of the optimizer.
 */
const VECTORS = 11;

/** What one training step costs, for planning. Exact for parameters and products, an estimate for memory. */
export function estimateCost(config: ModelConfig, shape: BatchShape): Cost {
  const parameters = parameterLayout(config).total;
  const work = familyOf(config).work(config, shape);
  return {
    parameters,
    flopsPerStep: 6 * work.multiplyAdds + OPTIMIZER_FLOPS * parameters,
    peakBytes: FLOAT_BYTES * (VECTORS * parameters + work.keptFloats + work.scratchFloats),
  };
}
