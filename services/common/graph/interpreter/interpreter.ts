import type { DecodedGraph, DecodedNode, DecodedValue } from "../decoding.js";
import { elementwise } from "./elementwise.js";
import { movement } from "./movement.js";
import { Call, type Operators } from "./operator.js";
import { products } from "./products.js";
import { reductions } from "./reductions.js";
import { at, stack, type Tensor } from "./tensor.js";

/** Microsoft's operators go by their domain and name, the standard's by their name. */
const operators: Operators = { ...elementwise, ...products, ...reductions, ...movement };
const LOOP = "Loop";
const SCAN = "Scan";

const fullName = ({ domain, op }: DecodedNode): string => (domain === "" ? op : `${domain}.${op}`);

/** Values by name, those of the graphs around included. */
type Scope = ReadonlyMap<string, Tensor>;

const isGraph = (value: unknown): value is DecodedGraph =>
  typeof value === "object" && value !== null && "nodes" in value;

const bodiesOf = ({ attributes }: DecodedNode): DecodedGraph[] => [...attributes.values()].filter(isGraph);

/** Operators of a graph, and of those inside it, that have no definition here. */
export function undefinedOperators(graph: DecodedGraph): string[] {
  const names = graph.nodes.flatMap((node) => {
    const name = fullName(node);
    const known = name === LOOP || name === SCAN || Object.hasOwn(operators, name);
    return [...(known ? [] : [name]), ...bodiesOf(node).flatMap(undefinedOperators)];
  });
  return [...new Set(names)].sort();
}

function lookUp(scope: Scope, name: string): Tensor {
  const value = scope.get(name);
  if (value === undefined) throw new RangeError(`${name} has no value`);
  return value;
}

/** Holds a value against its declaration; a dimension that is not known there may be anything. */
function check({ name, type, shape }: DecodedValue, value: Tensor): Tensor {
  const fits = value.shape.length === shape.length && shape.every((d, i) => Number.isNaN(d) || d === value.shape[i]);
  if (value.type === type && fits) return value;
  throw new TypeError(`${name} is ${type} [${shape.join()}], not ${value.type} [${value.shape.join()}]`);
}

/** Loop: trip count, condition and the values carried from run to run; a body gives a condition and the next values. */
function runLoop(node: DecodedNode, operands: readonly (Tensor | undefined)[], scope: Scope): Tensor[] {
  const [body] = bodiesOf(node);
  if (body === undefined) throw new TypeError("a loop without a body");
  const [trips, condition, ...initial] = operands;
  const limit = trips === undefined ? Infinity : at(trips.data, 0);
  let go: Tensor = condition ?? { type: "bool", shape: [], data: Float64Array.of(1) };
  let carried = initial as Tensor[];
  for (let run = 0; run < limit && at(go.data, 0) !== 0; run++) {
    const inputs = [{ type: "int64", shape: [], data: Float64Array.of(run) } as const, go, ...carried];
    const results = runGraph(body, inputs, scope);
    go = results[0] ?? go;
    carried = results.slice(1);
    if (carried.length !== initial.length) throw new TypeError("scan outputs are not defined");
  }
  return carried;
}

/** Scan without carried values: the body runs for each index of the first axis; its results are stacked along a new one. */
function runScan(node: DecodedNode, operands: readonly (Tensor | undefined)[], scope: Scope): Tensor[] {
  const [body] = bodiesOf(node);
  const inputs = operands as Tensor[];
  if (body === undefined || node.attributes.get("num_scan_inputs") !== inputs.length) {
    throw new TypeError("a scan without a body, or with carried values, is not defined");
  }
  const runs = inputs[0]?.shape[0] ?? 0;
  const cut = ({ type, shape, data }: Tensor, run: number): Tensor => {
    const size = data.length / runs;
    return { type, shape: shape.slice(1), data: data.subarray(run * size, (run + 1) * size) };
  };
  const results = Array.from({ length: runs }, (_, run) =>
    runGraph(
      body,
      inputs.map((input) => cut(input, run)),
      scope,
    ),
  );
  return body.outputs.map((_, i) => stack(results.map((each) => each[i] as Tensor)));
}

function runNode(node: DecodedNode, scope: Scope): Tensor[] {
  const operands = node.inputs.map((name) => (name === "" ? undefined : lookUp(scope, name)));
  if (fullName(node) === LOOP) return runLoop(node, operands, scope);
  if (fullName(node) === SCAN) return runScan(node, operands, scope);
  const operator = Object.hasOwn(operators, fullName(node)) ? operators[fullName(node)] : undefined;
  if (operator === undefined) throw new TypeError(`the interpreter does not define ${fullName(node)}`);
  return operator(new Call(node, operands));
}

function runGraph(graph: DecodedGraph, inputs: readonly Tensor[], around: Scope): Tensor[] {
  const scope = new Map(around);
  for (const { name, ...value } of graph.initializers) scope.set(name, value);
  graph.inputs.forEach((declared, i) => {
    const value = inputs[i];
    if (value === undefined) throw new RangeError(`input ${declared.name} has no value`);
    scope.set(declared.name, check(declared, value));
  });
  for (const node of graph.nodes) {
    try {
      const results = runNode(node, scope);
      node.outputs.forEach((name, i) => {
        const result = results[i];
        if (result === undefined) throw new TypeError(`output ${i} is not defined`);
        scope.set(name, result);
      });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new TypeError(`${fullName(node)} (${node.outputs.join()}): ${reason}`, { cause: error });
    }
  }
  return graph.outputs.map((declared) => check(declared, lookUp(scope, declared.name)));
}

/**
 * Runs a graph in float64, each operator by its definition: what ONNX Runtime computes, but for its rounding.
 * @param feeds a value for each input, by name
 * @returns the outputs by name
 * @throws TypeError for operators that have no definition here and for operands that do not fit, with the node's name
 */
export function interpret(graph: DecodedGraph, feeds: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const outputs = runGraph(
    graph,
    graph.inputs.map(({ name }) => lookUp(feeds, name)),
    new Map(),
  );
  return new Map(graph.outputs.map(({ name }, i) => [name, outputs[i] as Tensor]));
}
