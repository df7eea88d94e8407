import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Backend } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import type { ModelConfig } from "#common/graph/config.js";
import { Fleet } from "../fleet/fleet.js";
import { importFiles } from "../fleet/import.js";
import { trainBase, trainPerStep } from "./communication/common-steps.js";
import { type Corpus, writeCorpus } from "./communication/corpus.js";
import {
  BASE,
  BATCH,
  DEVICES,
  DILOCO,
  FRAGMENTS,
  modelConfig,
  optimizerAt,
  PERIOD,
  SEED,
  SEQ_LEN,
  STEPWISE_RATES,
} from "./communication/settings.js";
import { exportedWeights, heldOutLoss } from "./held-out.js";
import { type BenchResult, report } from "./report.js";
import { WireMeter } from "./wire-meter.js";

/** Rounds of one step that are measured; each is like the others. */
const STEPWISE_ROUNDS = 12;
/** In which a link's peak is looked for: longer than a synchronisation takes. */
const WINDOW_MS = 250;
/** Longer than the sampling needs to see the last bytes. */
const SETTLE_MS = 500;
const BASE_MODEL = "base";
const LEAST_TIMES = 400;
const MOST_LOSS_RATIO = 1.02;
const LEAST_PEAK_TIMES = 4;

interface Job {
  name: string;
  strategy: Record<string, unknown>;
  codec: Record<string, unknown>;
  rounds: number;
  steps: number;
}

function manifest({ name, strategy, codec, rounds, steps }: Job): string {
  const optimizer = optimizerAt(DILOCO.learningRate);
  const warmupSteps = Math.min(optimizer.schedule.warmupSteps, rounds * steps);
  return JSON.stringify({
    apiVersion: "shoal.dev/v1alpha1",
    kind: "TrainingJob",
    metadata: { name },
    spec: {
      model: { base: BASE_MODEL },
      data: { dataset: "sotu", purpose: "research", seqLen: SEQ_LEN, heldOutFraction: 0 },
      rounds,
      cohort: { min: DEVICES, target: DEVICES },
      local: {
        steps,
        stepPolicy: "fixed",
        batchSize: BATCH,
        optimizer: { ...optimizer, schedule: { ...optimizer.schedule, warmupSteps } },
      },
      strategy: { weighting: "equal", ...strategy },
      codec: { errorFeedback: true, ...codec },
      evaluation: { everyRounds: 0, finalRound: false },
      roundDeadlineMs: 600_000,
      seed: SEED,
    },
  });
}

interface Span {
  fromMs: number;
  /** When the first round was durable. */
  settledMs: number;
  untilMs: number;
  /** Rounds that were durable when `settledMs` was noted. */
  settledRounds: number;
}

async function run(fleet: Fleet, job: Job): Promise<Span> {
  await sleep(SETTLE_MS);
  const span: Span = { fromMs: performance.now(), settledMs: 0, untilMs: 0, settledRounds: 0 };
  await fleet.apply(manifest(job));
  const ended = await fleet.waitForJob(job.name, 1_800_000, ({ status }) => {
    const { completedRounds = 0, trainLoss } = status ?? {};
    if (completedRounds > 0 && span.settledMs === 0) {
      [span.settledMs, span.settledRounds] = [performance.now(), completedRounds];
    }
    if (completedRounds % Math.ceil(job.rounds / 8) === 0) {
      console.log(`${job.name}: round ${completedRounds}/${job.rounds}  train loss ${trainLoss?.toFixed(4) ?? "-"}`);
    }
  });
  if (ended.status?.phase !== "Completed") throw new Error(`the job is ${ended.status?.phase ?? "gone"}`);
  span.untilMs = performance.now();
  await sleep(SETTLE_MS);
  return span;
}

const SPARSE = { outerLearningRate: DILOCO.outerLearningRate, outerMomentum: DILOCO.outerMomentum };
const ENCODED = { name: "int4", down: "int4" };

const jobsOf = (periods: number): Record<"diloco" | "stepwise" | "streaming", Job> => ({
  diloco: {
    name: "diloco",
    strategy: { name: "diloco", ...SPARSE },
    codec: ENCODED,
    rounds: periods,
    steps: PERIOD,
  },
  stepwise: {
    name: "stepwise",
    strategy: { name: "fedavg" },
    codec: { name: "fp32" },
    rounds: STEPWISE_ROUNDS,
    steps: 1,
  },
  streaming: {
    name: "streaming",
    strategy: { name: "streamingDiloco", fragments: FRAGMENTS, ...SPARSE },
    codec: ENCODED,
    rounds: periods * FRAGMENTS,
    steps: PERIOD / FRAGMENTS,
  },
});

type Jobs = ReturnType<typeof jobsOf>;

interface Measured {
  spans: Record<keyof Jobs, Span>;
  weights: Record<"diloco" | "streaming", Float32Array>;
  meter: WireMeter;
}

/** Runs the jobs on a whole system of real processes, one after the other, and counts the bytes of its devices' links. */
async function measure(
  root: string,
  folders: readonly string[],
  base: ReturnType<typeof exportCheckpoint>,
  jobs: Jobs,
): Promise<Measured> {
  const fleet = await Fleet.start({ dir: join(root, "shoal") });
  let meter: WireMeter | undefined;
  try {
    const token = await fleet.token();
    folders.forEach((dataDir, i) => fleet.startDevice({ name: `device-${i + 1}`, dataset: "sotu", dataDir }, token));
    await fleet.waitForDevices(DEVICES);
    await fleet.withModels((models) => importFiles(models, BASE_MODEL, { ...base }));
    meter = await WireMeter.open(fleet.context().natsUrl, credsPaths(join(root, "shoal", "keys")).system);
    // First, so that its bytes hold the first fetch of the whole model and of the graph.
    const diloco = await run(fleet, jobs.diloco);
    const stepwise = await run(fleet, jobs.stepwise);
    const streaming = await run(fleet, jobs.streaming);
    const weights = {
      diloco: await exportedWeights(fleet, jobs.diloco.name),
      streaming: await exportedWeights(fleet, jobs.streaming.name),
    };
    return { spans: { diloco, stepwise, streaming }, weights, meter };
  } finally {
    await meter?.close().catch(() => undefined);
    await fleet.stop();
  }
}

type Add = (of: string, metric: string, value: number, unit: string, bar?: Partial<BenchResult>) => void;

interface Losses {
  base: number;
  perStep: { rate: number; loss: number }[];
  diloco: number;
  streaming: number;
}

function addLosses(add: Add, { base, perStep, diloco, streaming }: Losses): void {
  const unit = "nats/token";
  const best = Math.min(...perStep.map(({ loss }) => loss));
  add("before training", "held_out_loss", base, unit);
  for (const { rate, loss } of perStep) add(`per step, fp32, rate ${rate}`, "held_out_loss", loss, unit);
  const [most, mostStreamed] = [MOST_LOSS_RATIO * best, MOST_LOSS_RATIO * diloco];
  add("diloco", "held_out_loss", diloco, unit, { ratio: diloco / best, most });
  add("streaming", "held_out_loss", streaming, unit, { ratio: streaming / diloco, most: mostStreamed });
}

function addBytes(add: Add, { spans, meter }: Measured, steps: number): void {
  const { diloco, stepwise, streaming } = spans;
  const one = meter.total(stepwise.settledMs, stepwise.untilMs);
  const factor = steps / (STEPWISE_ROUNDS - stepwise.settledRounds);
  const per = { up: one.up * factor, down: one.down * factor };
  add("per step, fp32", "bytes_up", Math.round(per.up), "B");
  add("per step, fp32", "bytes_down", Math.round(per.down), "B");
  for (const [name, span] of [
    ["diloco", diloco],
    ["streaming", streaming],
  ] as const) {
    const sent = meter.total(span.fromMs, span.untilMs);
    const bar = name === "diloco" ? { least: LEAST_TIMES } : {};
    add(name, "bytes_up", sent.up, "B");
    add(name, "bytes_down", sent.down, "B");
    add(name, "times_fewer_up", per.up / sent.up, "x", bar);
    add(name, "times_fewer_down", per.down / sent.down, "x");
    add(name, "times_fewer_both", (per.up + per.down) / (sent.up + sent.down), "x", bar);
    add(name, "seconds", (span.untilMs - span.fromMs) / 1000, "s");
  }
  const high = meter.worstWindow(diloco.settledMs, diloco.untilMs, WINDOW_MS);
  const low = meter.worstWindow(streaming.settledMs, streaming.untilMs, WINDOW_MS);
  for (const way of ["up", "down", "both"] as const) {
    add("diloco", `peak_${way}`, high[way], `B in ${WINDOW_MS} ms`);
    add("streaming", `peak_${way}`, low[way], `B in ${WINDOW_MS} ms`);
    add("streaming", `peak_${way}_times_lower`, high[way] / low[way], "x", { least: LEAST_PEAK_TIMES });
  }
}

async function lossesOf(
  backend: Backend,
  config: ModelConfig,
  corpus: Corpus,
  start: Float32Array,
  { weights }: Measured,
  steps: number,
): Promise<Losses> {
  const lossOf = (of: Float32Array): Promise<number> => heldOutLoss(backend, config, of, corpus.held, SEQ_LEN);
  const perStep: Losses["perStep"] = [];
  for (const rate of STEPWISE_RATES) {
    const trained = await trainPerStep(backend, config, start, corpus.train, steps, rate);
    perStep.push({ rate, loss: await lossOf(trained) });
  }
  const [diloco, streaming] = [await lossOf(weights.diloco), await lossOf(weights.streaming)];
  return { base: await lossOf(start), perStep, diloco, streaming };
}

/**
 * What training costs on the wire, by nats-server's own counters of the devices' connections, in a whole system of real
 * processes: DiLoCo with int4 both ways against per-step exchange in fp32, and Streaming DiLoCo's peaks against DiLoCo's, each at
 * equal steps, on equal data and from the same base model. Bytes of per-step exchange are measured over some rounds of one
 * step and multiplied; its loss is that of one process that takes the same mean gradients, at the best of some rates.
 */
export async function communication(options: {
  json?: string | undefined;
  quick: boolean;
  strict: boolean;
}): Promise<void> {
  const [periods, baseSteps] = options.quick ? [2, 100] : [32, BASE.steps];
  const steps = periods * PERIOD;
  const config = modelConfig();
  const results: BenchResult[] = [];
  const add: Add = (of, metric, value, unit, bar = {}) => {
    results.push({ case: of, metric, value, unit, ...bar });
  };
  const root = mkdtempSync(join(tmpdir(), "shoal-communication-"));
  try {
    const corpus = writeCorpus(join(root, "data"));
    const backend = await openOnnxBackend({ threads: 2 });
    const start = await trainBase(backend, config, corpus.others, baseSteps);
    const measured = await measure(root, corpus.folders, exportCheckpoint(config, start), jobsOf(periods));
    addLosses(add, await lossesOf(backend, config, corpus, start, measured, steps));
    addBytes(add, measured, steps);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
  report("communication", results, options.json, options.strict);
}
