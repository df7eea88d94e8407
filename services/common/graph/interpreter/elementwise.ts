import { DATA_TYPE } from "../encoding.js";
import type { ElementType } from "../model.js";
import type { Operator, Operators } from "./operator.js";
import { at, broadcastShape, broadcastTo, type Tensor, tensorOf } from "./tensor.js";

/** Operators that work element by element, operands repeated to one shape. */

function sameType(tensors: readonly Tensor[]): ElementType {
  const types = [...new Set(tensors.map(({ type }) => type))];
  if (types.length !== 1) throw new TypeError(`operands of the types ${types.join(" and ")}`);
  return types[0] as ElementType;
}

/** What a type holds of a number: whole numbers are cut towards zero, bytes wrap. */
function fit(type: ElementType, x: number): number {
  if (type === "bool") return x === 0 ? 0 : 1;
  if (type === "int64") return Math.trunc(x);
  if (type === "uint8") return Math.trunc(x) & 0xff;
  return x;
}

const each = (x: Tensor, type: ElementType, f: (x: number) => number): Tensor =>
  tensorOf(type, x.shape, (i) => fit(type, f(at(x.data, i))));

function zip(x: Tensor, y: Tensor, type: ElementType, f: (a: number, b: number) => number): Tensor {
  const shape = broadcastShape(x.shape, y.shape);
  const [a, b] = [broadcastTo(x, shape).data, broadcastTo(y, shape).data];
  return tensorOf(type, shape, (i) => fit(type, f(at(a, i), at(b, i))));
}

const unary =
  (f: (x: number) => number): Operator =>
  (call) => {
    const x = call.operand(0);
    return [each(x, x.type, f)];
  };

/** Two operands, or as many as there are from the left. */
const arithmetic =
  (f: (a: number, b: number) => number): Operator =>
  ({ operands }) => {
    const type = sameType(operands);
    return [operands.reduce((a, b) => zip(a, b, type, f))];
  };

const comparison =
  (f: (a: number, b: number) => boolean): Operator =>
  (call) => {
    sameType(call.operands);
    return [zip(call.operand(0), call.operand(1), "bool", (a, b) => (f(a, b) ? 1 : 0))];
  };

const cast: Operator = (call) => {
  const to = call.number("to");
  const type = Object.entries(DATA_TYPE).find(([, number]) => number === to)?.[0];
  if (type === undefined) throw new TypeError(`a cast to element type ${to}`);
  return [each(call.operand(0), type as ElementType, (x) => x)];
};

const shift: Operator = (call) => {
  const right = call.text("direction", "") === "RIGHT";
  return arithmetic((x, places) => (right ? x >> places : x << places))(call);
};

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** The tanh approximation of GELU (Hendrycks and Gimpel 2016). */
const tanhGelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

export const elementwise: Operators = {
  Identity: unary((x) => x),
  Neg: unary((x) => -x),
  Exp: unary(Math.exp),
  Sqrt: unary(Math.sqrt),
  Sigmoid: unary(sigmoid),
  "com.microsoft.FastGelu": unary(tanhGelu),
  "com.microsoft.QuickGelu": (call) => {
    const alpha = call.number("alpha", 1.702);
    return unary((x) => x * sigmoid(alpha * x))(call);
  },
  Add: arithmetic((a, b) => a + b),
  Sum: arithmetic((a, b) => a + b),
  Sub: arithmetic((a, b) => a - b),
  Mul: arithmetic((a, b) => a * b),
  Div: arithmetic((a, b) => a / b),
  Pow: arithmetic(Math.pow),
  Min: arithmetic((a, b) => Math.min(a, b)),
  Max: arithmetic((a, b) => Math.max(a, b)),
  BitwiseAnd: arithmetic((a, b) => a & b),
  BitwiseOr: arithmetic((a, b) => a | b),
  BitShift: shift,
  Equal: comparison((a, b) => a === b),
  Less: comparison((a, b) => a < b),
  GreaterOrEqual: comparison((a, b) => a >= b),
  Cast: cast,
};
