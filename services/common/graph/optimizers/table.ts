import { adamw, type AdamWOptions } from "./adamw.js";
import type { Optimizer } from "./optimizer.js";
import { sgd, type SgdOptions } from "./sgd.js";

/** AdamW unless SGD is asked for. */
export type OptimizerOptions =
  ({ readonly optimizer?: "adamw" } & AdamWOptions) | ({ readonly optimizer: "sgd" } & SgdOptions);

export function optimizerOf(options: OptimizerOptions): Optimizer {
  return options.optimizer === "sgd" ? sgd(options) : adamw(options);
}
