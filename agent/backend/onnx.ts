import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import type { Backend } from "./backend.js";
import { instantiate } from "./kernels/module.js";
import type { Workbench } from "./node-timing.js";
import type { Provider } from "./providers.js";
import type { OrtRuntime, OrtSession } from "./runtime.js";
import { backendOf } from "./sessions.js";

export interface OnnxOptions {
  /** Threads inside one operator, a whole number from 1. */
  readonly threads: number;
  /** What computes; the processor if absent. Operators that a provider lacks run on the processor. */
  readonly provider?: Exclude<Provider, "wasm"> | undefined;
  /** Whether the processor is reached through the package's own binding, which copies all outputs; else if it must. */
  readonly binding?: boolean;
}

// What fails is thrown; the runtime would write it to standard error as well.
ort.env.logLevel = "fatal";

// Waiting threads sleep instead of spinning: several agents share the cores of one machine.
const SPINNING = { "session.intra_op.allow_spinning": "0" } as const;

/** How every graph is opened. What a step reads and writes is in buffers.ts. */
const sessionOptions = (threads: number, provider: string): ort.InferenceSession.SessionOptions => ({
  executionProviders: [provider],
  intraOpNumThreads: threads,
  interOpNumThreads: 1,
  executionMode: "sequential",
  graphOptimizationLevel: "all",
  // The pattern's block comes on top of what the first run took: nearly twice the memory, and no faster.
  enableMemPattern: false,
  logSeverityLevel: 3,
  extra: { session: { intra_op: { allow_spinning: SPINNING["session.intra_op.allow_spinning"] } } },
});

async function openBound(graph: Uint8Array, options: ort.InferenceSession.SessionOptions): Promise<OrtSession> {
  const session = await ort.InferenceSession.create(graph, options);
  return {
    inputNames: session.inputNames,
    inputMetadata: session.inputMetadata,
    outputMetadata: session.outputMetadata,
    run: (feeds) => session.run(feeds),
    runInto: async (feeds, outputs) => {
      await session.run(feeds, outputs);
    },
    release: () => session.release(),
  };
}

type Open = (graph: Uint8Array) => Promise<OrtSession>;

/** The runtime's C API, or undefined where no foreign functions can be called or the library is not found. */
async function directly(): Promise<((threads: number, rewrite?: boolean) => Open) | undefined> {
  try {
    const { canLoad, openDirect } = await import("./c-api.js");
    canLoad();
    return (threads, rewrite = true) =>
      (graph) =>
        Promise.resolve().then(() => openDirect(graph, { threads, rewrite, config: SPINNING }, ort.Tensor));
  } catch {
    return undefined;
  }
}

/**
 * The native runtime. On the processor the same graph, state and batch give the same bits on every run with the same
 * threads.
 */
export async function openOnnxBackend({ threads, provider = "cpu", binding = false }: OnnxOptions): Promise<Backend> {
  const direct = provider === "cpu" && !binding ? await directly() : undefined;
  const runtime = (open: Open): OrtRuntime => {
    // A device that must copy outputs and has no lanes says so in its facts.
    const name = provider === "cpu" && direct === undefined ? "onnxruntime-cpu-binding" : `onnxruntime-${provider}`;
    return { name, Tensor: ort.Tensor, open, nowMs: () => performance.now() };
  };
  if (direct === undefined) return backendOf(runtime((graph) => openBound(graph, sessionOptions(threads, provider))));
  return backendOf(runtime(direct(threads)), {
    threads,
    runtime: (each) => runtime(direct(each)),
    kernels: instantiate,
  });
}

/** For measurements of steps and of single nodes: as training runs them, and models taken as they are. */
export function openWorkbench({ threads, provider = "cpu" }: OnnxOptions): Workbench {
  const options = sessionOptions(threads, provider);
  const opening = provider === "cpu" ? directly() : Promise.resolve(undefined);
  return {
    ...{ Tensor: ort.Tensor, threads },
    nowMs: () => performance.now(),
    train: async (graph) => (await openOnnxBackend({ threads, provider })).train(graph),
    kernels: instantiate,
    hasLanes: async () => (await opening) !== undefined,
    open: async (model, each = threads) =>
      (await opening)?.(each, false)(model) ??
      openBound(model, { ...sessionOptions(each, provider), graphOptimizationLevel: "disabled" }),
    inspect: async (model) => {
      const session = await ort.InferenceSession.create(model, { ...options, graphOptimizationLevel: "disabled" });
      const { inputMetadata, outputMetadata } = session;
      await session.release();
      return { inputMetadata, outputMetadata };
    },
    optimize: async (graph) => {
      const folder = await mkdtemp(join(tmpdir(), "shoal-graph-"));
      try {
        const optimizedModelFilePath = join(folder, "graph.onnx");
        const session = await ort.InferenceSession.create(graph, { ...options, optimizedModelFilePath });
        await session.release();
        return await readFile(optimizedModelFilePath);
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    },
  };
}
