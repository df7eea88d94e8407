import { readFileSync } from "node:fs";
import { openOnnxBackend, openWorkbench } from "#agent/backend/onnx.js";
import { predictStep } from "#agent/step-prediction.js";
import type { ModelConfig } from "#common/graph/config.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { quantizedSize } from "#common/graph/quantize.js";
import { buildTrainGraph, type TrainGraphOptions } from "#common/graph/train.js";
import { variantLayout, type VariantLayout } from "#common/graph/variant.js";
import { openProducts } from "./products.js";
import type { Report, Task } from "./worker.js";

/** Most memory this process has had at once, bytes. */
const peakBytes = (): number => {
  const found = /VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"));
  if (found === null) throw new Error("this system does not tell a process's peak memory");
  return Number(found[1]) * 1024;
};

/** One run of what is measured. */
type Run = () => Promise<unknown>;

/** Frozen weights of no meaning: small ones, far from denormal. */
function randomFrozen({ frozen, quantized }: VariantLayout): Record<"plain" | "scales", Float32Array> & {
  packed: Uint8Array;
} {
  const sizes = quantized.map(quantizedSize);
  const plain = new Float32Array(frozen.total);
  for (let i = 0; i < plain.length; i++) plain[i] = (((i * 7919) % 1009) - 504) / 12_000;
  return {
    plain,
    packed: new Uint8Array(sizes.reduce((sum, { bytes }) => sum + bytes, 0)).fill(0x79),
    scales: new Float32Array(sizes.reduce((sum, { scales }) => sum + scales, 0)).fill(0.02),
  };
}

async function openStep(config: ModelConfig, options: TrainGraphOptions, threads: number): Promise<Run> {
  const backend = await openOnnxBackend({ threads });
  const session = await backend.train(buildTrainGraph(config, options));
  const variant = options.variant ?? {};
  const layout = variantLayout(config, variant);
  const trainsAll = layout.frozen.total === 0 && layout.adapters.length === 0;
  if (!trainsAll) session.loadFrozen(randomFrozen(layout));
  const zeros = new Float32Array(session.parameters);
  session.load({ weights: trainsAll ? initWeights(config, 1) : initVariant(config, variant, 1), m: zeros, v: zeros });
  const count = options.batch * options.seqLen;
  const tokens = Int32Array.from({ length: count }, (_, i) => (i * 7919) % config.vocabSize);
  const segments = new Int32Array(count);
  let step = 0;
  return () => session.step({ tokens, targets: tokens, segments }, 1e-4, ++step);
}

function open(task: Exclude<Task, { kind: "idle" }>): Promise<Run> {
  return task.kind === "step"
    ? openStep(task.config, task.options, task.threads)
    : openProducts(openWorkbench(task), task.config, task.options);
}

async function main(task: Task): Promise<void> {
  const report = (runsMs: number[], productShare?: number): void => {
    const all: Report = { runsMs, peakBytes: peakBytes(), ...(productShare === undefined ? {} : { productShare }) };
    process.send?.(all);
  };
  if (task.kind === "idle") {
    report([]);
    return;
  }
  if (task.kind === "share") {
    const { options } = task;
    const shape = { batch: options.batch, seqLen: options.seqLen, variant: options.variant ?? {} };
    report([], (await predictStep(openWorkbench(task), task.config, shape)).productShare);
    return;
  }
  const run = await open(task);
  // What was only needed to open it is no part of the figure.
  global.gc?.();
  process.on("message", (runs: number) => {
    void (async () => {
      const runsMs: number[] = [];
      for (let i = 0; i < runs; i++) {
        const startMs = performance.now();
        await run();
        runsMs.push(performance.now() - startMs);
      }
      report(runsMs);
    })();
  });
  report([]);
}

process.on("disconnect", () => process.exit());
await main(JSON.parse(process.argv[2] ?? "") as Task);
