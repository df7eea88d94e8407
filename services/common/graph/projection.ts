import type { GraphBuilder, Value } from "./builder.js";
import { type QuantizedMatrix, quantizedProduct } from "./kernels.js";
import { add, dimension, gemm, split } from "./ops.js";

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

/**
 * The same with a weight that lies as [in, out], in so many equal parts side by side: of many rows it is quicker to cut the
 * weight than the result. A weight that is not plain gives one result.
 */
export function projectParts(
  g: GraphBuilder,
  parameters: Parameters,
  module: string,
  count: number,
  x: Value,
): readonly Value[] {
  const isPlain = parameters.quantized(`${module}.weight`) === undefined && parameters.adapter(module) === undefined;
  if (!isPlain || dimension(x.shape, 0) <= dimension(x.shape, 1)) return [project(g, parameters, module, false, x)];
  const cut = (name: string): Value[] => {
    const whole = parameters.tensor(`${module}.${name}`);
    const axis = whole.shape.length - 1;
    const sizes = Array.from({ length: count }, () => dimension(whole.shape, axis) / count);
    return split(g, whole, axis, sizes);
  };
  const biases = parameters.has(`${module}.bias`) ? cut("bias") : [];
  return cut("weight").map((weight, i) => gemm(g, x, weight, {}, biases[i]));
}
