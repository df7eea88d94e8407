import type { GraphBuilder, Node, Value } from "./builder.js";
import { at, fusedRules, intAttribute, type Rule } from "./derivatives.js";
import { add, addRows, concat, dimension, full, gemm, matmul, mul, reduceSum, reshape, sub, transpose } from "./ops.js";

/** Reverse-mode differentiation over graph nodes. The backward pass is ordinary nodes of the same graph. */

const floatAttribute = (node: Node, name: string): number => {
  const attribute = node.attributes[name];
  return attribute?.kind === "float" ? attribute.value : 1;
};

/** Undoes broadcasting: sums a gradient over the axes along which the operand was repeated. */
function reduceTo(g: GraphBuilder, gradient: Value, target: Value): Value {
  const extra = gradient.shape.length - target.shape.length;
  const axes = gradient.shape.flatMap((d, i) => (i < extra || (target.shape[i - extra] === 1 && d !== 1) ? [i] : []));
  return axes.length === 0 ? gradient : reshape(g, reduceSum(g, gradient, axes), target.shape);
}

/** Both gradients of op(a) op(b) without a transposed copy; `multiply` is gemm or the batched product. */
function productRule(multiply: typeof gemm): Rule {
  return (g, node, dy) => {
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

const softmaxRule: Rule = (g, node, dy) => {
  const y = at(node.outputs, 0);
  const weighted = mul(g, dy, y);
  return [sub(g, weighted, mul(g, y, reduceSum(g, weighted, [-1], true)))];
};

const gatherRule: Rule = (g, node, dy) => {
  const [table, indices] = [at(node.inputs, 0), at(node.inputs, 1)];
  const count = indices.shape.reduce((product, d) => product * d, 1);
  const rows = reshape(g, dy, [count, ...table.shape.slice(1)]);
  return [addRows(g, full(g, table.shape, 0), reshape(g, indices, [count, 1]), rows)];
};

const rules: Readonly<Record<string, Rule>> = {
  Add: (g, node, dy) => [reduceTo(g, dy, at(node.inputs, 0)), reduceTo(g, dy, at(node.inputs, 1))],
  Gemm: productRule(gemm),
  FusedMatMul: productRule((g, a, b, how) => matmul(g, a, b, how)),
  ...fusedRules,
  Mul: (g, node, dy) => {
    const [a, b] = [at(node.inputs, 0), at(node.inputs, 1)];
    return [reduceTo(g, mul(g, dy, b), a), reduceTo(g, mul(g, dy, a), b)];
  },
  Softmax: softmaxRule,
  Gather: gatherRule,
  Reshape: (g, node, dy) => [reshape(g, dy, at(node.inputs, 0).shape)],
  Transpose: (g, node, dy) => {
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
  Slice: (g, node, dy) => {
    const x = at(node.inputs, 0);
    const missing = dimension(x.shape, 0) - dimension(dy.shape, 0);
    return [missing === 0 ? dy : concat(g, [dy, full(g, [missing, ...x.shape.slice(1)], 0)], 0)];
  },
  Split: (g, node, _dy, gradients) => {
    const parts = node.outputs.map((output, i) => gradients[i] ?? full(g, output.shape, 0));
    return [concat(g, parts, intAttribute(node, "axis"))];
  },
};

/**
 * Emits the backward pass.
 * @param seeds values whose gradients are already known (for a loss: the gradient of the logits)
 * @param wanted the values to differentiate for
 * @returns one gradient per wanted value, of its shape; zeros for a value that nothing depends on
 */
export function differentiate(
  g: GraphBuilder,
  seeds: readonly { value: Value; gradient: Value }[],
  wanted: readonly Value[],
): Value[] {
  const forward = [...g.nodes];
  const active = new Set(wanted.map((value) => value.name));
  for (const node of forward) {
    if (!node.inputs.some((input) => active.has(input.name))) continue;
    for (const output of node.outputs) if (!g.detached.has(output.name)) active.add(output.name);
  }
  const gradients = new Map<string, Value>();
  const accumulate = (value: Value, gradient: Value): void => {
    const sum = gradients.get(value.name);
    gradients.set(value.name, sum === undefined ? gradient : add(g, sum, gradient));
  };
  seeds.forEach(({ value, gradient }) => accumulate(value, gradient));
  for (const node of forward.reverse()) {
    const received = node.outputs.map((output) => gradients.get(output.name));
    const dy = received.find((gradient) => gradient !== undefined);
    if (dy === undefined || !node.outputs.some((output) => active.has(output.name))) continue;
    const rule = rules[node.op];
    if (rule === undefined) throw new Error(`no derivative for ${node.op}`);
    rule(g, node, dy, received).forEach((gradient, i) => {
      const input = node.inputs[i];
      if (gradient !== undefined && input !== undefined && active.has(input.name)) accumulate(input, gradient);
    });
  }
  return wanted.map((value) => gradients.get(value.name) ?? full(g, value.shape, 0));
}
