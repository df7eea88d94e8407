import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";
import type { DecodedValue } from "#common/graph/decoding.js";

export type Tensors = Record<string, Tensor>;
type Results = InferenceSession.ReturnType;

/** A graph that a runtime has opened. */
export interface OrtSession extends Pick<
  InferenceSession,
  "inputNames" | "inputMetadata" | "outputMetadata" | "release"
> {
  /** All outputs, in new tensors. */
  run(feeds: Tensors): Promise<Results>;
  /** Leaves the outputs named in the float32 tensors given for them. */
  runInto(feeds: Tensors, outputs: Tensors): Promise<void>;
}

/**
 * What the sessions need of an ONNX Runtime: native and web have nearly the same API, but each accepts only tensors of
 * its own class. One file per runtime makes this, with its options.
 */
export interface OrtRuntime {
  /** As calibrations and reports name it. */
  readonly name: string;
  readonly Tensor: TensorConstructor;
  open(graph: Uint8Array): Promise<OrtSession>;
  /** A clock for measurements, in milliseconds from anywhere. */
  nowMs(): number;
}

/** A declared input or output as the runtimes describe it. */
export const metadataOf = ({ name, type, shape }: DecodedValue): InferenceSession.ValueMetadata => ({
  ...{ name, isTensor: true, type },
  shape: shape.map((size) => (Number.isNaN(size) ? "any" : size)),
});

/** The data of a float32 output. @throws TypeError if there is none of that name */
export function floats(results: Results, name: string): Float32Array {
  const data = results[name]?.data;
  if (!(data instanceof Float32Array)) throw new TypeError(`the graph gave no float32 output ${name}`);
  return data;
}

/** `runInto` of a runtime that makes new tensors: copies what it gave for the outputs named. */
export function copyOutputs(results: Results, outputs: Tensors): void {
  for (const [name, target] of Object.entries(outputs)) (target.data as Float32Array).set(floats(results, name));
}
