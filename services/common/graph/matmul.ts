import { GraphBuilder } from "./builder.js";
import { gemm } from "./ops.js";

/** a, b float32 [n,n] -> product [n,n]: one matrix product, to measure what a device can do. */
export function buildMatmulGraph(n: number): Uint8Array {
  const g = new GraphBuilder();
  g.output("product", gemm(g, g.input("a", "float32", [n, n]), g.input("b", "float32", [n, n])));
  return g.encode();
}
