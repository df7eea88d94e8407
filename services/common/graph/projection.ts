import type { GraphBuilder, Value } from "./builder.js";
import { type QuantizedMatrix, quantizedProduct } from "./kernels.js";
import { add, gemm } from "./ops.js";

/** Low-rank matrices beside a projection (Hu et al. 2021): a [rank, in], b [out, rank]. */
export interface Adapter {
  readonly a: Value;
  readonly b: Value;
  readonly scale: number;
}

/** A model's tensors inside a graph, by their Hugging Face names. */
export interface Parameters {
  /** Throws if the model has no such tensor. */
  tensor(name: string): Value;
  /** A matrix that is kept as integers, which `tensor` does not have. */
  quantized(name: string): QuantizedMatrix | undefined;
  has(name: string): boolean;
  /** The adapter of a projection, by its module's name. */
  adapter(module: string): Adapter | undefined;
}

function base(
  g: GraphBuilder,
  parameters: Parameters,
  name: string,
  transB: boolean,
  x: Value,
  bias: Value | undefined,
): Value {
  const matrix = parameters.quantized(name);
  if (matrix === undefined) return gemm(g, x, parameters.tensor(name), { transB }, bias);
  const y = quantizedProduct(g, x, matrix);
  return bias === undefined ? y : add(g, y, bias);
}

/**
 * x [n, in] times the weight of a linear module, plus its bias where it has one, plus its adapter's s (x A^T) B^T.
 * @param transB whether the weight lies as [out, in], as in Linear, or as [in, out], as in GPT-2's Conv1D
 */
export function project(g: GraphBuilder, parameters: Parameters, module: string, transB: boolean, x: Value): Value {
  const bias = parameters.has(`${module}.bias`) ? parameters.tensor(`${module}.bias`) : undefined;
  const y = base(g, parameters, `${module}.weight`, transB, x, bias);
  const adapter = parameters.adapter(module);
  if (adapter === undefined) return y;
  const low = gemm(g, x, adapter.a, { transB: true });
  return gemm(g, low, adapter.b, { transB: true, alpha: adapter.scale }, y);
}
