import * as ort from "onnxruntime-node";
import type { Tensor } from "#common/graph/interpreter/tensor.js";

function toNative({ type, shape, data }: Tensor): ort.Tensor {
  if (type === "float32") return new ort.Tensor(type, Float32Array.from(data), shape);
  if (type === "int64") return new ort.Tensor(type, BigInt64Array.from(data, BigInt), shape);
  return new ort.Tensor(type, Uint8Array.from(data), shape);
}

/** The outputs of a graph on the native runtime, with all its optimisations. */
export async function runNative(graph: Uint8Array, feeds: ReadonlyMap<string, Tensor>): Promise<Map<string, Tensor>> {
  const session = await ort.InferenceSession.create(graph, {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    graphOptimizationLevel: "all",
    logSeverityLevel: 3,
  });
  const native = [...feeds].map(([name, value]) => [name, toNative(value)] as const);
  const results = await session.run(Object.fromEntries(native));
  const outputs = session.outputNames.map((name): [string, Tensor] => {
    const { type, dims, data } = results[name] as ort.Tensor;
    if (type !== "float32" && type !== "int64" && type !== "uint8") throw new Error(`an output of ${type}`);
    return [name, { type, shape: dims, data: Float64Array.from(data as Iterable<number | bigint>, Number) }];
  });
  await session.release();
  return new Map(outputs);
}

/** ||a - b|| / ||b||, where b is larger than `least`; NaN for different lengths. */
export function relativeDistance(a: Tensor | undefined, b: Tensor, least = 1e-6): number {
  if (a?.shape.join() !== b.shape.join()) return NaN;
  const norm = (values: Float64Array): number => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
  return norm(b.data.map((x, i) => x - (a.data[i] ?? NaN))) / Math.max(norm(b.data), least);
}
