import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";

/**
 * What the sessions need of an ONNX Runtime: native and web have the same API, but each accepts only tensors of its own
 * class. One file per runtime makes this, with its options.
 */
export interface OrtRuntime {
  /** As calibrations and reports name it. */
  readonly name: string;
  readonly Tensor: TensorConstructor;
  /** Whether a run writes into the tensors given for its outputs; if not, its results are copied into them. */
  readonly writesOutputs: boolean;
  open(graph: Uint8Array): Promise<InferenceSession>;
  /** A clock for measurements, in milliseconds from anywhere. */
  nowMs(): number;
}

export type Tensors = Record<string, Tensor>;

/** The data of a float32 output. @throws TypeError if there is none of that name */
export function floats(results: InferenceSession.ReturnType, name: string): Float32Array {
  const data = results[name]?.data;
  if (!(data instanceof Float32Array)) throw new TypeError(`the graph gave no float32 output ${name}`);
  return data;
}

/** Runs a graph and leaves its outputs in the float32 tensors given for them. */
export async function runInto(
  runtime: OrtRuntime,
  session: InferenceSession,
  feeds: Tensors,
  outputs: Tensors,
): Promise<void> {
  if (runtime.writesOutputs) {
    await session.run(feeds, outputs);
    return;
  }
  const results = await session.run(feeds, Object.keys(outputs));
  for (const [name, target] of Object.entries(outputs)) (target.data as Float32Array).set(floats(results, name));
}
