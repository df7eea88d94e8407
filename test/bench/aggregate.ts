import { benchKernels } from "./aggregate/kernels.js";
import { report } from "./report.js";

interface AggregateOptions {
  readonly json?: string | undefined;
  /** Few turns. */
  readonly quick: boolean;
  readonly strict: boolean;
}

/** Measures the fold of updates. With `strict` a missed bar fails the process. */
export function aggregate({ json, quick, strict }: AggregateOptions): Promise<void> {
  report("aggregate", benchKernels(quick), json, strict);
  return Promise.resolve();
}
