import { type InferenceSession, Tensor } from "onnxruntime-common";
import { type DecodedGraph, type DecodedValue, decodeModel } from "#common/graph/decoding.js";
import { interpret } from "#common/graph/interpreter/interpreter.js";
import type { Tensor as Value } from "#common/graph/interpreter/tensor.js";
import type { Backend } from "./backend.js";
import { metadataOf, copyOutputs, type OrtSession, type Tensors } from "./runtime.js";
import { backendOf } from "./sessions.js";

export interface InterpreterOptions {
  /** A clock for measurements, in milliseconds from anywhere. */
  readonly nowMs: () => number;
}

function valueOf(tensor: Tensor, { name, type }: DecodedValue): Value {
  if (tensor.type !== type) throw new TypeError(`input ${name} is ${type}, not ${tensor.type}`);
  const data = tensor.data as Float32Array | Uint8Array | BigInt64Array;
  const numbers = data instanceof BigInt64Array ? Float64Array.from(data, Number) : new Float64Array(data);
  return { type, shape: tensor.dims, data: numbers };
}

function tensorOf({ type, shape, data }: Value): Tensor {
  if (type === "float32") return new Tensor(type, Float32Array.from(data), shape);
  if (type === "int64") return new Tensor(type, BigInt64Array.from(data, BigInt), shape);
  return new Tensor(type, Uint8Array.from(data), shape);
}

/** A graph that is run by the interpreter, with the face of a runtime's session. */
class InterpretedSession implements OrtSession {
  readonly inputNames: readonly string[];
  readonly inputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly outputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly #graph: DecodedGraph;

  constructor(graph: DecodedGraph) {
    this.#graph = graph;
    this.inputMetadata = graph.inputs.map(metadataOf);
    this.outputMetadata = graph.outputs.map(metadataOf);
    this.inputNames = graph.inputs.map(({ name }) => name);
  }

  #run(feeds: InferenceSession.FeedsType): InferenceSession.ReturnType {
    const values = new Map<string, Value>();
    for (const declared of this.#graph.inputs) {
      const tensor = feeds[declared.name];
      if (tensor === undefined) throw new RangeError(`input ${declared.name} is missing`);
      values.set(declared.name, valueOf(tensor, declared));
    }
    const outputs = [...interpret(this.#graph, values)];
    return Object.fromEntries(outputs.map(([name, value]) => [name, tensorOf(value)]));
  }

  run(feeds: InferenceSession.FeedsType): Promise<InferenceSession.ReturnType> {
    // A refusal is a rejection, as it is with the runtimes.
    return Promise.resolve().then(() => this.#run(feeds));
  }

  async runInto(feeds: Tensors, outputs: Tensors): Promise<void> {
    copyOutputs(await this.run(feeds), outputs);
  }

  release(): Promise<void> {
    return Promise.resolve();
  }
}

/** The definition of the operators as a backend: float64 inside a run, float32 between runs, and slow. */
export function openInterpreterBackend({ nowMs }: InterpreterOptions): Promise<Backend> {
  const backend = backendOf({
    name: "interpreter",
    Tensor,
    open: (graph) => Promise.resolve().then(() => new InterpretedSession(decodeModel(graph))),
    nowMs,
  });
  return Promise.resolve(backend);
}
