import * as ort from "onnxruntime-web";
import type { Backend } from "./backend.js";
import { copyOutputs, type OrtSession } from "./runtime.js";
import { backendOf } from "./sessions.js";

export interface WebOptions {
  /** Threads inside one operator, a whole number from 1; more than 1 needs a page with cross-origin isolation. */
  readonly threads: number;
}

const sessionOptions: ort.InferenceSession.SessionOptions = {
  executionProviders: ["wasm"],
  executionMode: "sequential",
  graphOptimizationLevel: "all",
  enableMemPattern: false,
  logSeverityLevel: 3,
};

let last: Promise<unknown> = Promise.resolve();

/** One call at a time: all sessions share one WebAssembly stack, and a call that begins within another destroys it. */
function alone<Result>(call: () => Promise<Result>): Promise<Result> {
  const result = last.then(call);
  last = result.catch(() => undefined);
  return result;
}

async function open(graph: Uint8Array): Promise<OrtSession> {
  const session = await alone(() => ort.InferenceSession.create(graph, sessionOptions));
  return {
    inputNames: session.inputNames,
    inputMetadata: session.inputMetadata,
    outputMetadata: session.outputMetadata,
    run: (feeds) => alone(() => session.run(feeds)),
    // It computes on copies in WebAssembly's own memory.
    runInto: (feeds, outputs) =>
      alone(async () => copyOutputs(await session.run(feeds, Object.keys(outputs)), outputs)),
    release: () => alone(() => session.release()),
  };
}

/** The runtime in WebAssembly, in Node and in browsers. All its sessions share the threads of the first. */
export function openWebBackend({ threads }: WebOptions): Promise<Backend> {
  ort.env.wasm.numThreads = threads;
  const name = "onnxruntime-wasm";
  return Promise.resolve(backendOf({ name, Tensor: ort.Tensor, open, nowMs: () => performance.now() }));
}
