import { compileKernels } from "#common/tensor/kernels/module.js";

/** What `assembly/index.ts` exports. Vectors are places in memory, in bytes, and counts of float32 values. */
export interface Kernels {
  /** It starts small. */
  readonly memory: WebAssembly.Memory;
  addInto(sum: number, part: number, count: number): void;
  pull(gradient: number, weights: number, anchor: number, count: number, mu: number): void;
  squareSum(values: number, part: number, count: number): number;
  adamw(
    ...args: [
      ...[weights: number, m: number, v: number, gradient: number, count: number],
      ...[beta1: number, intoM: number, beta2: number, intoV: number, rate: number, eps: number, kept: number],
    ]
  ): void;
  sgd(
    ...args: [
      ...[weights: number, m: number, gradient: number, correction: number, count: number],
      ...[scale: number, decay: number, momentum: number, lr: number],
    ]
  ): void;
}

const module = compileKernels(new URL("kernels.wasm", import.meta.url));

/** The kernels, with a memory of their own. */
export function instantiate(): Kernels {
  // The build makes the module out of assembly/index.ts, so it has these exports.
  return new WebAssembly.Instance(module).exports as Kernels;
}
