import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";
import {
  BENCH_OUTPUT,
  benchModel,
  classifyNodes,
  exposeValues,
  feedName,
  graphOutputs,
  type NodeClass,
  type TensorFacts,
} from "./node-classes.js";

/** What measuring single nodes needs of a runtime. */
export interface Workbench {
  readonly Tensor: TensorConstructor;
  /** The model as the runtime rewrites it before it runs it. */
  optimize(graph: Uint8Array): Promise<Uint8Array>;
  /** Opens a model as it is. */
  open(model: Uint8Array): Promise<InferenceSession>;
  /** Milliseconds from anywhere. */
  nowMs(): number;
}

/** Nodes of one class and what they take. */
export interface TimedClass {
  readonly op: string;
  readonly count: number;
  readonly inputs: readonly (readonly number[])[];
  /** Floating-point operations of one node, if it is a matrix product; else 0. */
  readonly flops: number;
  /** Bytes that one node reads and writes. */
  readonly bytes: number;
  /** Milliseconds of one node. */
  readonly ms: number;
}

const PRODUCTS = new Set(["Gemm", "MatMul", "FusedMatMul", "FusedGemm", "MatMulNBits"]);
/** Bytes of operands from outside that are gone through before one comes again: more than a core's own cache holds. */
const COLD_BYTES = 48 * 2 ** 20;
const MOST_COPIES = 24;
/** Time to measure a class for, and the least number of runs. */
const CLASS_MS = 10;
const LEAST_RUNS = 3;
/** Nodes of more operations or bytes are run as seldom as can be. */
const LONG_FLOPS = 5e8;
const LONG_BYTES = 2 ** 25;
const FEW_COPIES = 3;

const sizeOf = (shape: readonly number[]): number => shape.reduce((all, d) => all * d, 1);
const WIDTH: Readonly<Record<string, number>> = { float32: 4, int32: 4, int64: 8, uint8: 1, bool: 1 };
const bytesOf = ({ type, shape }: TensorFacts): number => sizeOf(shape) * (WIDTH[type] ?? 4);

/** Two operations for each element of the result and each of the summed dimension, which the sizes alone tell. */
function flopsOf({ op, inputs, outputs }: NodeClass): number {
  const [a, b, out] = [inputs[0]?.facts, inputs[1]?.facts, outputs[0]];
  if (!PRODUCTS.has(op) || a === undefined || b === undefined || out === undefined) return 0;
  const squared = (sizeOf(a.shape) * sizeOf(b.shape)) / sizeOf(out.shape);
  return 2 * sizeOf(out.shape) * Math.sqrt(squared / sizeOf(b.shape.slice(0, -2)));
}

function dataFor({ type, shape }: TensorFacts): Float32Array | BigInt64Array | Int32Array | Uint8Array {
  const size = sizeOf(shape);
  switch (type) {
    case "int64":
      return new BigInt64Array(size);
    case "int32":
      return new Int32Array(size);
    case "uint8":
    case "bool":
      return new Uint8Array(size).fill(1);
    default:
      // Far from denormal numbers, on which processors crawl, and different enough to be no special case.
      return Float32Array.from({ length: size }, (_, i) => 0.25 + (i % 61) / 128);
  }
}

function factsIn(metadata: readonly InferenceSession.ValueMetadata[]): Map<string, TensorFacts> {
  return new Map(
    metadata.flatMap((value) =>
      value.isTensor
        ? [[value.name, { type: value.type, shape: value.shape.map((d) => (typeof d === "number" ? d : 1)) }] as const]
        : [],
    ),
  );
}

function median(values: number[]): number {
  return values.sort((x, y) => x - y)[values.length >> 1] ?? NaN;
}

/** Milliseconds of a run of the model. */
async function timeRuns(bench: Workbench, model: Uint8Array, one: NodeClass, sets: number): Promise<number> {
  const session = await bench.open(model);
  try {
    const tensor = (facts: TensorFacts): Tensor =>
      new bench.Tensor(facts.type as "float32", dataFor(facts) as Float32Array, facts.shape);
    const feeds: Record<string, Tensor> = {};
    one.inputs.forEach((input, i) => {
      const { facts, constant, outside } = input;
      if (facts === undefined || constant !== undefined) return;
      for (let set = 0; set < (outside ? sets : 1); set++) feeds[feedName(input, i, set)] = tensor(facts);
    });
    const [first] = one.outputs;
    const fetches = first === undefined ? {} : { [BENCH_OUTPUT]: tensor(first) };
    await session.run(feeds, fetches);
    const took: number[] = [];
    const until = bench.nowMs() + CLASS_MS;
    do {
      const startMs = bench.nowMs();
      await session.run(feeds, fetches);
      took.push(bench.nowMs() - startMs);
    } while (took.length < LEAST_RUNS || bench.nowMs() < until);
    return median(took);
  } finally {
    await session.release();
  }
}

/** What a call itself takes, milliseconds: a part for the call, a part for each tensor that is handed over. */
export interface CallCost {
  readonly ms: number;
  readonly tensorMs: number;
}

const NEGATION: NodeClass = {
  op: "Neg",
  count: 1,
  inputs: [{ facts: { type: "float32", shape: [1] }, constant: undefined, outside: true, captured: undefined }],
  outputs: [{ type: "float32", shape: [1] }],
  rest: Uint8Array.of(0x22, 3, ...new TextEncoder().encode("Neg")),
};

/** Measured with a node that does nothing to speak of, on one tensor and on many. */
async function timeCall(bench: Workbench, opsets: readonly Uint8Array[]): Promise<CallCost> {
  const at = (tensors: number): Promise<number> =>
    timeRuns(bench, benchModel(NEGATION, opsets, tensors, tensors), NEGATION, tensors);
  const [few, many] = [await at(1), await at(MOST_COPIES)];
  const tensorMs = Math.max(0, many - few) / (MOST_COPIES - 1);
  return { ms: Math.max(0, few - 2 * tensorMs), tensorMs };
}

/** Milliseconds of one node: those of a run of many, without what the call takes. */
async function timeClass(
  bench: Workbench,
  one: NodeClass,
  opsets: readonly Uint8Array[],
  call: CallCost,
): Promise<number> {
  const fed = one.inputs.filter(({ facts, constant }) => facts !== undefined && constant === undefined);
  const cold = fed.filter(({ outside }) => outside);
  const coldBytes = cold.reduce((sum, { facts }) => sum + (facts === undefined ? 0 : bytesOf(facts)), 0);
  const sets = coldBytes === 0 ? 1 : Math.max(1, Math.min(MOST_COPIES, Math.round(COLD_BYTES / coldBytes)));
  const bytes = [...fed.flatMap(({ facts }) => facts ?? []), ...one.outputs].reduce(
    (sum, each) => sum + bytesOf(each),
    0,
  );
  const isLong = flopsOf(one) > LONG_FLOPS || bytes > LONG_BYTES;
  const copies = isLong ? FEW_COPIES : MOST_COPIES;
  const runMs = await timeRuns(bench, benchModel(one, opsets, copies, sets), one, sets);
  const tensors = 1 + fed.length - cold.length + cold.length * sets;
  return Math.max(0, runMs - call.ms - call.tensorMs * tensors) / copies;
}

export interface TimedGraph {
  readonly classes: readonly TimedClass[];
  /** What the call of the graph takes beside its nodes. */
  readonly callMs: number;
}

/**
 * What each class of nodes of a graph takes on this machine, after the runtime's own rewriting. Their sum, each by its
 * count, is what a run of the graph takes but for the call.
 */
export async function timeNodes(bench: Workbench, graph: Uint8Array): Promise<TimedGraph> {
  const optimized = await bench.optimize(graph);
  const session = await bench.open(exposeValues(optimized));
  const inputs = factsIn(session.inputMetadata);
  const facts = new Map([...inputs, ...factsIn(session.outputMetadata)]);
  await session.release();
  const tensors = inputs.size + graphOutputs(optimized);
  const { classes, opsets } = classifyNodes(optimized, facts, new Set(inputs.keys()));
  const call = await timeCall(bench, opsets);
  const timed: TimedClass[] = [];
  for (const one of classes) {
    const operands = one.inputs.flatMap((input) => input.facts ?? []);
    timed.push({
      op: one.op,
      count: one.count,
      inputs: operands.map(({ shape }) => shape),
      flops: flopsOf(one),
      bytes: [...operands, ...one.outputs].reduce((sum, each) => sum + bytesOf(each), 0),
      ms: await timeClass(bench, one, opsets, call),
    });
  }
  return { classes: timed, callMs: call.ms + call.tensorMs * tensors };
}

/** Elements of each vector: far more than any cache holds. */
const LONG_VECTOR = 2 ** 24;
/** ONNX's own operators, version 20, as an OperatorSetIdProto. */
const ONNX_20 = Uint8Array.of(0x10, 20);

/** Bytes a second between memory and processor, measured by adding two long vectors. */
export async function timeBandwidth(bench: Workbench): Promise<number> {
  const facts: TensorFacts = { type: "float32", shape: [LONG_VECTOR] };
  const operand = { facts, constant: undefined, outside: true, captured: undefined };
  const rest = Uint8Array.of(0x22, 3, ...new TextEncoder().encode("Add"));
  const addition = { op: "Add", count: 1, inputs: [operand, operand], outputs: [facts], rest };
  const ms = await timeClass(bench, addition, [ONNX_20], { ms: 0, tensorMs: 0 });
  return (3000 * bytesOf(facts)) / ms;
}
