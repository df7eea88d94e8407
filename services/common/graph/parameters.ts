import type { GraphBuilder, Value } from "./builder.js";
import type { ParameterLayout } from "./layout.js";
import { reshape, split } from "./ops.js";

/** Cuts the flat vector [total] into the model's tensors, by name. */
export function unpackParameters(g: GraphBuilder, layout: ParameterLayout, flat: Value): Map<string, Value> {
  const parts = split(
    g,
    flat,
    0,
    layout.tensors.map((tensor) => tensor.size),
  );
  return new Map(
    layout.tensors.map((tensor, i) => {
      const part = parts[i];
      if (part === undefined) throw new Error(`no part for ${tensor.name}`);
      return [tensor.name, tensor.shape.length === 1 ? part : reshape(g, part, tensor.shape)];
    }),
  );
}
