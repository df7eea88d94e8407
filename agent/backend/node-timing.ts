import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";
import { type LaneGraphs, laneGraphs } from "#common/graph/lanes.js";
import type { TrainSession } from "./backend.js";
import {
  BENCH_OUTPUT,
  benchModel,
  classifyNodes,
  exposeValues,
  feedName,
  type NodeClass,
  type TensorFacts,
} from "./node-classes.js";
import type { Kernels } from "./kernels/module.js";
import type { OrtSession, Tensors } from "./runtime.js";
import { StepVectors } from "./step-vectors.js";

type Metadata = Pick<InferenceSession, "inputMetadata" | "outputMetadata">;

/** What measuring steps and single nodes needs of a runtime. */
export interface Workbench {
  readonly Tensor: TensorConstructor;
  /** Threads of a training session. */
  readonly threads: number;
  /** Opens a training step as a training job does. */
  train(graph: Uint8Array): Promise<TrainSession>;
  /** Whether steps are trained in lanes where they can be. */
  hasLanes(): Promise<boolean>;
  /** The end of a step in lanes. */
  kernels(): Kernels;
  /** The model as the runtime rewrites it before it runs it. */
  optimize(graph: Uint8Array): Promise<Uint8Array>;
  /** Opens a model as it is. @param threads inside one operator; those of a session if absent */
  open(model: Uint8Array, threads?: number): Promise<OrtSession>;
  /** Types and shapes of a model's inputs and outputs, those included that its file does not tell. */
  inspect(model: Uint8Array): Promise<Metadata>;
  /** Milliseconds from anywhere. */
  nowMs(): number;
}

/** Nodes of one class and what they take; where a step is run in lanes, one after the other in each of them. */
export interface TimedClass {
  readonly op: string;
  readonly count: number;
  readonly inputs: readonly (readonly number[])[];
  /** Floating-point operations of one node in all lanes, if it is a matrix product; else 0. */
  readonly flops: number;
  /** Bytes that one node in all lanes reads and writes. */
  readonly bytes: number;
  /** Milliseconds of one node, with the same one in all other lanes beside it. */
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
/** Nodes of fewer operations and bytes are run so often that the call is little beside them. */
const SHORT_FLOPS = 1e6;
const SHORT_BYTES = 2 ** 18;
const SHORT_COPIES = 72;

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

/** Values between two bounds, far from denormal numbers, on which processors crawl, and different enough to be no special case. */
export function anyValues(length: number, least: number, most: number): Float32Array {
  const values = new Float32Array(length);
  for (let i = 0; i < length; i++) values[i] = least + (((i * 7919) % 1009) * (most - least)) / 1009;
  return values;
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
      return anyValues(size, 0.25, 0.75);
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

/** Of an odd number of values; else the larger of the middle two. */
export function median(values: readonly number[]): number {
  return [...values].sort((x, y) => x - y)[values.length >> 1] ?? NaN;
}

/** Tensors of a lane's own for the model of a class. */
function buffersOf(bench: Workbench, one: NodeClass, sets: number): { feeds: Tensors; fetches: Tensors } {
  const tensor = (facts: TensorFacts): Tensor =>
    new bench.Tensor(facts.type as "float32", dataFor(facts) as Float32Array, facts.shape);
  const feeds: Tensors = {};
  one.inputs.forEach((input, i) => {
    const { facts, constant, outside } = input;
    if (facts === undefined || constant !== undefined) return;
    for (let set = 0; set < (outside ? sets : 1); set++) feeds[feedName(input, i, set)] = tensor(facts);
  });
  const [first] = one.outputs;
  return { feeds, fetches: first === undefined ? {} : { [BENCH_OUTPUT]: tensor(first) } };
}

/** How nodes are run: on how many threads each, and in how many lanes at once. */
interface Side {
  readonly threads: number;
  readonly lanes: number;
}

/** Milliseconds of a run of the model in all lanes side by side. */
async function timeRuns(
  bench: Workbench,
  { threads, lanes }: Side,
  model: Uint8Array,
  one: NodeClass,
  sets: number,
): Promise<number> {
  const session = await bench.open(model, threads);
  try {
    const buffers = Array.from({ length: lanes }, () => buffersOf(bench, one, sets));
    const run = (): Promise<unknown> =>
      Promise.all(buffers.map(({ feeds, fetches }) => session.runInto(feeds, fetches)));
    await run();
    const took: number[] = [];
    const until = bench.nowMs() + CLASS_MS;
    do {
      const startMs = bench.nowMs();
      await run();
      took.push(bench.nowMs() - startMs);
    } while (took.length < LEAST_RUNS || bench.nowMs() < until);
    return median(took);
  } finally {
    await session.release();
  }
}

/** What a call itself takes, milliseconds: a part for the call, a part for each tensor that is handed over. */
interface CallCost {
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
async function timeCall(bench: Workbench, side: Side, opsets: readonly Uint8Array[]): Promise<CallCost> {
  const at = (tensors: number): Promise<number> =>
    timeRuns(bench, side, benchModel(NEGATION, opsets, tensors, tensors), NEGATION, tensors);
  const [few, many] = [await at(1), await at(MOST_COPIES)];
  const tensorMs = Math.max(0, many - few) / (MOST_COPIES - 1);
  return { ms: Math.max(0, few - 2 * tensorMs), tensorMs };
}

function copiesOf(flops: number, bytes: number): number {
  if (flops > LONG_FLOPS || bytes > LONG_BYTES) return FEW_COPIES;
  return flops < SHORT_FLOPS && bytes < SHORT_BYTES ? SHORT_COPIES : MOST_COPIES;
}

/** Milliseconds of one node: those of a run of many, without what the call takes. */
async function timeClass(
  bench: Workbench,
  side: Side,
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
  const copies = copiesOf(flopsOf(one), bytes);
  const runMs = await timeRuns(bench, side, benchModel(one, opsets, copies, sets), one, sets);
  const tensors = 1 + fed.length - cold.length + cold.length * sets;
  return Math.max(0, runMs - call.ms - call.tensorMs * tensors) / copies;
}

/** What each class of nodes of a graph takes on this machine, after the runtime's own rewriting. */
async function timeGraph(bench: Workbench, side: Side, graph: Uint8Array): Promise<TimedClass[]> {
  const optimized = await bench.optimize(graph);
  const { inputMetadata, outputMetadata } = await bench.inspect(exposeValues(optimized));
  const inputs = factsIn(inputMetadata);
  const facts = new Map([...inputs, ...factsIn(outputMetadata)]);
  const { classes, opsets } = classifyNodes(optimized, facts, new Set(inputs.keys()));
  const call = await timeCall(bench, side, opsets);
  const timed: TimedClass[] = [];
  for (const one of classes) {
    const operands = one.inputs.flatMap((input) => input.facts ?? []);
    timed.push({
      op: one.op,
      count: one.count,
      inputs: operands.map(({ shape }) => shape),
      flops: flopsOf(one) * side.lanes,
      bytes: [...operands, ...one.outputs].reduce((sum, each) => sum + bytesOf(each), 0) * side.lanes,
      ms: await timeClass(bench, side, one, opsets, call),
    });
  }
  return timed;
}

/** The end of a step in lanes: all vectors once more, outside of the graph. */
function timeUpdate(bench: Workbench, lanes: LaneGraphs): TimedClass {
  const vectors = new StepVectors(bench.kernels(), lanes);
  const took: number[] = [];
  // The first run finds memory that has never been touched.
  for (let step = 1; step <= 1 + LEAST_RUNS; step++) {
    const startMs = bench.nowMs();
    vectors.update(0, step, vectors.reduce());
    if (step > 1) took.push(bench.nowMs() - startMs);
  }
  const { parameters, kept } = vectors.trained;
  return {
    op: lanes.options.optimizer === "sgd" ? "SGD" : "AdamW",
    count: 1,
    inputs: [[parameters]],
    flops: 0,
    // Lanes' gradients are added up and their norm taken, then read again beside what is kept, which is written too.
    bytes: Float32Array.BYTES_PER_ELEMENT * parameters * (3 * lanes.lanes + 2 * kept.length),
    ms: median(took),
  };
}

/** The lanes that a training session runs a step in, or undefined if it runs the step whole. */
export async function lanesOf(bench: Workbench, graph: Uint8Array): Promise<LaneGraphs | undefined> {
  return (await bench.hasLanes()) ? laneGraphs(graph, bench.threads) : undefined;
}

/**
 * What each class of nodes of a training step takes on this machine, where it is run in lanes with all of them busy; the
 * optimizer, which is then no node, is among them.
 * @param graph a training graph
 */
export async function timeNodes(bench: Workbench, graph: Uint8Array): Promise<TimedClass[]> {
  const lanes = await lanesOf(bench, graph);
  if (lanes === undefined) return timeGraph(bench, { threads: bench.threads, lanes: 1 }, graph);
  const side = { threads: Math.floor(bench.threads / lanes.lanes), lanes: lanes.lanes };
  return [...(await timeGraph(bench, side, lanes.gradient)), timeUpdate(bench, lanes)];
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
  const side = { threads: bench.threads, lanes: 1 };
  const ms = await timeClass(bench, side, addition, [ONNX_20], { ms: 0, tensorMs: 0 });
  return (3000 * bytesOf(facts)) / ms;
}
