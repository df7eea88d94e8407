import type { GraphBuilder, Node, Segment, Value } from "./builder.js";
import { at, fusedRules, gatherRule, intAttribute, ownRule, type Rule, softmaxRule } from "./derivatives.js";
import { waitFor } from "./kernels.js";
import { addTo, concat, dimension, full, gemm, matmul, mul, reduceSum, reshape, sumRows, transpose } from "./ops.js";

/** Reverse-mode differentiation over graph nodes. The backward pass is ordinary nodes of the same graph. */

const floatAttribute = (node: Node, name: string): number => {
  const attribute = node.attributes[name];
  return attribute?.kind === "float" ? attribute.value : 1;
};

/** Undoes broadcasting: sums a gradient over the axes along which the operand was repeated. */
function reduceTo(g: GraphBuilder, gradient: Value, target: Value): Value {
  const extra = gradient.shape.length - target.shape.length;
  const axes = gradient.shape.flatMap((d, i) => (i < extra || (target.shape[i - extra] === 1 && d !== 1) ? [i] : []));
  if (axes.length === 0) return gradient;
  const rows = axes.join() === "0" && gradient.shape.length === 2;
  return reshape(g, rows ? sumRows(g, gradient) : reduceSum(g, gradient, axes), target.shape);
}

/** Both gradients of op(a) op(b) without a transposed copy; `multiply` is gemm or the batched product. */
function productRule(multiply: typeof gemm): Rule {
  return (g, node, { dy }) => {
    const [a, b] = [at(node.inputs, 0), at(node.inputs, 1)];
    const transA = intAttribute(node, "transA") === 1;
    const transB = intAttribute(node, "transB") === 1;
    const alpha = floatAttribute(node, "alpha");
    const da = transA
      ? multiply(g, b, dy, { transA: transB, transB: true, alpha })
      : multiply(g, dy, b, { transB: !transB, alpha });
    const db = transB
      ? multiply(g, dy, a, { transA: true, transB: transA, alpha })
      : multiply(g, a, dy, { transA: !transA, alpha });
    const bias = node.inputs[2];
    return [da, db, bias === undefined ? undefined : reduceTo(g, dy, bias)];
  };
}

const rules: Readonly<Record<string, Rule>> = {
  Add: (g, node, { dy }) => [reduceTo(g, dy, at(node.inputs, 0)), reduceTo(g, dy, at(node.inputs, 1))],
  Gemm: productRule(gemm),
  FusedMatMul: productRule((g, a, b, how) => matmul(g, a, b, how)),
  ...fusedRules,
  Mul: (g, node, { dy }) => {
    const [a, b] = [at(node.inputs, 0), at(node.inputs, 1)];
    return [reduceTo(g, mul(g, dy, b), a), reduceTo(g, mul(g, dy, a), b)];
  },
  Softmax: softmaxRule,
  Gather: gatherRule,
  Reshape: (g, node, { dy }) => [reshape(g, dy, at(node.inputs, 0).shape)],
  Transpose: (g, node, { dy }) => {
    const perm = node.attributes["perm"];
    if (perm?.kind !== "ints") throw new Error("Transpose without perm");
    return [
      transpose(
        g,
        dy,
        perm.value.map((_, axis) => perm.value.indexOf(axis)),
      ),
    ];
  },
  Slice: (g, node, { dy }) => {
    const x = at(node.inputs, 0);
    const missing = dimension(x.shape, 0) - dimension(dy.shape, 0);
    return [missing === 0 ? dy : concat(g, [dy, full(g, [missing, ...x.shape.slice(1)], 0)], 0)];
  },
  Split: (g, node, { outputs }) => {
    const parts = node.outputs.map((output, i) => outputs[i] ?? full(g, output.shape, 0));
    return [concat(g, parts, intAttribute(node, "axis"))];
  },
};

/**
 * The forward pass as the backward pass reads it: the nodes themselves, or, of segments that are computed again, copies
 * that are made when the segment's gradient arrives (Chen et al. 2016: one segment's values at a time, one more forward
 * pass).
 */
class ForwardReader {
  readonly #copies = new Map<Node, Node>();
  readonly #segmentOf = new Map<Node, Segment>();
  readonly #g: GraphBuilder;
  readonly #forward: readonly Node[];

  constructor(g: GraphBuilder, forward: readonly Node[], recompute: boolean) {
    this.#g = g;
    this.#forward = forward;
    for (const segment of recompute ? g.segments : []) {
      for (const node of forward.slice(segment.from, segment.to)) this.#segmentOf.set(node, segment);
    }
  }

  /** The node whose operands and results may be used from now on. */
  read(node: Node, dy: Value): Node {
    const segment = this.#segmentOf.get(node);
    if (segment === undefined) return node;
    if (!this.#copies.has(node)) this.#copy(segment, dy);
    return this.#copies.get(node) ?? node;
  }

  #copy({ input, from, to }: Segment, dy: Value): void {
    const exchanged = new Map([[input.name, waitFor(this.#g, input, dy)]]);
    for (const node of this.#forward.slice(from, to)) {
      const copy = this.#g.again(node, exchanged);
      node.outputs.forEach((output, i) => exchanged.set(output.name, at(copy.outputs, i)));
      this.#copies.set(node, copy);
    }
  }
}

/**
 * Emits the backward pass.
 * @param seeds values whose gradients are already known (for a loss: the gradient of the logits)
 * @param wanted the values to differentiate for
 * @param recompute whether segments are computed again instead of kept
 * @returns one gradient per wanted value, of its shape; zeros for a value that nothing depends on
 */
export function differentiate(
  g: GraphBuilder,
  seeds: readonly { value: Value; gradient: Value }[],
  wanted: readonly Value[],
  recompute = false,
): Value[] {
  const forward = [...g.nodes];
  const reader = new ForwardReader(g, forward, recompute);
  const active = new Set(wanted.map((value) => value.name));
  for (const node of forward) {
    if (!node.inputs.some((input) => active.has(input.name))) continue;
    for (const output of node.outputs) if (!g.detached.has(output.name)) active.add(output.name);
  }
  const gradients = new Map<string, Value>();
  const accumulate = (value: Value, gradient: Value): void => {
    const sum = gradients.get(value.name);
    gradients.set(value.name, sum === undefined ? gradient : addTo(g, sum, gradient));
  };
  seeds.forEach(({ value, gradient }) => accumulate(value, gradient));
  for (const node of [...forward].reverse()) {
    const outputs = node.outputs.map((output) => gradients.get(output.name));
    const dy = outputs.find((gradient) => gradient !== undefined);
    if (dy === undefined || !node.outputs.some((output) => active.has(output.name))) continue;
    const rule = ownRule(node) ?? rules[node.op];
    if (rule === undefined) throw new Error(`no derivative for ${node.op}`);
    const soFar = node.inputs.map((input) => gradients.get(input.name));
    rule(g, reader.read(node, dy), { dy, outputs, soFar }).forEach((gradient, i) => {
      const input = node.inputs[i];
      if (gradient === undefined || input === undefined || !active.has(input.name)) return;
      if ("total" in gradient) gradients.set(input.name, gradient.total);
      else accumulate(input, gradient);
    });
  }
  return wanted.map((value) => gradients.get(value.name) ?? full(g, value.shape, 0));
}
