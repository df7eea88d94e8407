import type { Tensor } from "onnxruntime-common";
import type { Workbench } from "#agent/backend/node-timing.js";
import { GraphBuilder, type Model, type Node, sizeOf, type Value } from "#common/graph/builder.js";
import type { ModelConfig } from "#common/graph/config.js";
import { concat, reshape, slice } from "#common/graph/ops.js";
import { trainModel, type TrainGraphOptions } from "#common/graph/train.js";

const PRODUCTS = new Set(["Gemm", "FusedMatMul", "MatMulNBits"]);

/** Runs of a node's inner graph. */
function repeats({ op, inputs, attributes }: Node, { initializers }: Model): number {
  if (op === "Loop") {
    const count = initializers.find(({ name }) => name === inputs[0]?.name)?.data;
    return Array.isArray(count) ? Number(count[0]) : 1;
  }
  const scanned = attributes["num_scan_inputs"];
  return op === "Scan" && scanned?.kind === "int" ? (inputs.at(-scanned.value)?.shape[0] ?? 1) : 1;
}

/** All matrix products of a step, those in loops as often as they run. A product with a vector is no such thing. */
export function productsOf(model: Model): Node[] {
  return model.nodes.flatMap((node) => {
    if (PRODUCTS.has(node.op)) return node.outputs[0]?.shape.at(-1) === 1 ? [] : [node];
    return Object.values(node.attributes).flatMap((attribute) => {
      if (attribute.kind !== "graph") return [];
      const inner = productsOf(attribute.value);
      return Array.from({ length: repeats(node, model) }, () => inner).flat();
    });
  });
}

/** Floating-point operations of a product. */
export function productFlops({ op, inputs, outputs, attributes }: Node): number {
  const rows = inputs[0]?.shape ?? [];
  const isTransposed = attributes["transA"]?.kind === "int" && attributes["transA"].value === 1;
  const inner = rows.at(op !== "MatMulNBits" && isTransposed ? -2 : -1) ?? 0;
  return 2 * inner * sizeOf(outputs[0]?.shape ?? []);
}

/**
 * The products alone, each on inputs of its own shape that equal products share; a sum that a product would be made on top
 * of is left out. One value of each comes out, so that nothing is left out of the run and nothing of size is copied.
 */
export function productsGraph(products: readonly Node[]): Uint8Array {
  const g = new GraphBuilder();
  const inputs = new Map<string, Value>();
  const operand = ({ op, attributes }: Node, { type, shape }: Value, place: number): Value => {
    const key = [op, place, type, shape.join("x"), JSON.stringify(attributes)].join();
    const known = inputs.get(key) ?? g.input(`input.${inputs.size}`, type, shape);
    inputs.set(key, known);
    return known;
  };
  const corners = products.map((node) => {
    const used = node.inputs.slice(0, node.op === "MatMulNBits" ? 3 : 2).map((value, i) => operand(node, value, i));
    const [product] = g.node(node.op, used, node.outputs, node.attributes, node.domain) as [Value];
    const corner = slice(
      g,
      product,
      product.shape.map(() => 0),
      product.shape.map(() => 1),
    );
    return reshape(g, corner, [1]);
  });
  g.output("corners", concat(g, corners, 0));
  return g.encode();
}

/** Opens the products of a step as they are emitted: rewriting would merge those of equal shapes into one. */
export async function openProducts(
  bench: Workbench,
  config: ModelConfig,
  options: TrainGraphOptions,
): Promise<() => Promise<unknown>> {
  const session = await bench.open(productsGraph(productsOf(trainModel(config, options))));
  const feeds: Record<string, Tensor> = {};
  for (const value of session.inputMetadata) {
    if (!value.isTensor) throw new TypeError(`${value.name} is no tensor`);
    const shape = value.shape.map(Number);
    const size = sizeOf(shape);
    feeds[value.name] =
      value.type === "uint8"
        ? new bench.Tensor("uint8", new Uint8Array(size).fill(0x79), shape)
        : new bench.Tensor(
            "float32",
            Float32Array.from({ length: size }, (_, i) => (((i * 7919) % 1009) - 504) / 12_000),
            shape,
          );
  }
  return () => session.run(feeds);
}
