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
/** Flat vectors alive: weights, m and v coming in and going out, the gradient, and what the optimizer works on. */
const VECTORS = 10;
/** What the native runtime's allocator takes over what is alive, measured on models of 0.8 to 11 M parameters. */
const ALLOCATOR = 1.3;

/** What one training step costs, for planning. Exact for parameters and products, an estimate for memory. */
export function estimateCost(config: ModelConfig, shape: BatchShape): Cost {
  const parameters = parameterLayout(config).total;
  const work = familyOf(config).work(config, shape);
  return {
    parameters,
    flopsPerStep: 6 * work.multiplyAdds + OPTIMIZER_FLOPS * parameters,
    peakBytes: FLOAT_BYTES * Math.ceil(VECTORS * parameters + ALLOCATOR * (work.keptFloats + work.scratchFloats)),
  };
}
