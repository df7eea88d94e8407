import type { Operator, Operators } from "./operator.js";
import { at, broadcastShape, broadcastTo, sizeAt, type Tensor, tensorOf, transposed } from "./tensor.js";

/** Operators that are matrix products. */

/** x with its last two axes exchanged. */
function turned(x: Tensor): Tensor {
  const axes = x.shape.map((_, axis) => axis);
  return transposed(x, [...axes.slice(0, -2), axes.length - 1, axes.length - 2]);
}

/** a [..., m,k] times the transpose of b [..., n,k], the axes in front repeated to one shape -> [..., m,n]. */
function product(a: Tensor, b: Tensor, alpha = 1): Tensor {
  const [m, k, n] = [sizeAt(a.shape, -2), sizeAt(a.shape, -1), sizeAt(b.shape, -2)];
  if (sizeAt(b.shape, -1) !== k) throw new RangeError(`rows of ${k} by columns of ${sizeAt(b.shape, -1)}`);
  const front = broadcastShape(a.shape.slice(0, -2), b.shape.slice(0, -2));
  const [left, right] = [broadcastTo(a, [...front, m, k]).data, broadcastTo(b, [...front, n, k]).data];
  return tensorOf(a.type, [...front, m, n], (i) => {
    // Rows are counted over all matrices.
    const row = Math.floor(i / n);
    const [begin, other] = [row * k, (Math.floor(row / m) * n + (i % n)) * k];
    let sum = 0;
    for (let j = 0; j < k; j++) sum += (left[begin + j] as number) * (right[other + j] as number);
    return alpha * sum;
  });
}

const plus = (x: Tensor, y: Tensor): Tensor => {
  const added = broadcastTo(y, x.shape).data;
  return { ...x, data: x.data.map((value, i) => value + at(added, i)) };
};

/** [m, ..., k] -> [..., m,k] */
function batchFirst(x: Tensor): Tensor {
  const axes = x.shape.map((_, axis) => axis);
  return transposed(x, [...axes.slice(1, -1), 0, axes.length - 1]);
}

const fusedMatMul: Operator = (call) => {
  const batched = (i: number, name: string): Tensor =>
    call.flag(name, false) ? batchFirst(call.operand(i)) : call.operand(i);
  const [a, b] = [batched(0, "transBatchA"), batched(1, "transBatchB")];
  const left = call.flag("transA", false) ? turned(a) : a;
  return [product(left, call.flag("transB", false) ? b : turned(b), call.number("alpha", 1))];
};

const gemm: Operator = (call) => {
  const [y] = fusedMatMul(call);
  if (y === undefined || !call.has(2)) return y === undefined ? [] : [y];
  const [beta, bias] = [call.number("beta", 1), call.operand(2)];
  return [plus(y, { ...bias, data: bias.data.map((x) => beta * x) })];
};

/**
 * x [..., K] times the transpose of a matrix [N, K] of small integers: `bits` wide, several to a byte from its low end,
 * offset by 2^(bits-1), each block of `block_size` along K with a scale of its own.
 */
const matMulNBits: Operator = (call) => {
  const [x, packed, scales] = [call.operand(0), call.operand(1), call.operand(2)];
  if (call.has(3) || call.has(4) || call.has(5)) throw new TypeError("zero points, orders and biases are not defined");
  const [columns, rows] = [call.number("K"), call.number("N")];
  const [bits, block] = [call.number("bits", 4), call.number("block_size")];
  const perByte = 8 / bits;
  const matrix = tensorOf("float32", [rows, columns], (i) => {
    const stored = (at(packed.data, Math.floor(i / perByte)) >> (bits * (i % perByte))) & (2 ** bits - 1);
    return (stored - 2 ** (bits - 1)) * at(scales.data, Math.floor(i / block));
  });
  return [product(x, matrix)];
};

export const products: Operators = {
  Gemm: gemm,
  "com.microsoft.FusedMatMul": fusedMatMul,
  "com.microsoft.MatMulNBits": matMulNBits,
};
