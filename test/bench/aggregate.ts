import { benchKernels } from "./aggregate/kernels.js";
import { benchMemory } from "./aggregate/memory.js";
import { report } from "./report.js";

interface AggregateOptions {
  readonly json?: string | undefined;
  /** Few turns, and a small model for the peak of memory. */
  readonly quick: boolean;
  readonly strict: boolean;
}

/** Measures the fold of updates: the kernels' speed, then the aggregator's memory. With `strict` a missed bar fails the process. */
export async function aggregate({ json, quick, strict }: AggregateOptions): Promise<void> {
  const kernels = benchKernels(quick);
  report("aggregate", [...kernels, ...(await benchMemory(quick))], json, strict);
}
