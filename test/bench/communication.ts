import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Backend, Batch } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { learningRateAt } from "#common/domain/schedule.js";
import { deriveSeed } from "#common/domain/seed.js";
import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { readAddresses } from "../fleet/addresses.js";
import { Fleet } from "../fleet/fleet.js";
import { exportedWeights, heldOutLoss } from "./held-out.js";
import { type BenchResult, report } from "./report.js";
import { WireMeter } from "./wire-meter.js";

const DEVICES = 4;
const BATCH = 4;
const SEQ_LEN = 32;
const SEED = 42;
const FRAGMENTS = 8;
/** Local steps between two synchronisations of a parameter. */
const PERIOD = 256;
/** Rounds of one step that are measured; each is like the others. */
const STEPWISE_ROUNDS = 12;
/** In which a link's peak is looked for: longer than a synchronisation takes, shorter than a fragment's local steps. */
const WINDOW_MS = 500;
const MODEL = { vocab_size: 256, n_positions: SEQ_LEN, n_layer: FRAGMENTS, n_head: 2, n_embd: 64 };
const OPTIMIZER = {
  name: "adamw",
  learningRate: 2e-3,
  beta1: 0.9,
  beta2: 0.99,
  eps: 1e-8,
  weightDecay: 0.1,
  clipNorm: 1,
  schedule: { name: "cosine", warmupSteps: 50, minRatio: 0.1 },
  keepState: true,
};

interface Corpus {
  folders: string[];
  /** Bytes of every device. */
  train: Int32Array[];
  /** The last address of everyone. */
  held: Int32Array;
}

const tokensOf = (texts: readonly { text: string }[]): Int32Array =>
  Int32Array.from(Buffer.from(texts.map(({ text }) => text).join("\n"), "utf8"));

function writeCorpus(root: string): Corpus {
  const presidents = readAddresses(DEVICES, 6);
  const folders = presidents.map((all, i) => {
    const folder = join(root, `device-${i + 1}`);
    mkdirSync(folder, { recursive: true });
    for (const { year, text } of all.slice(0, -1)) writeFileSync(join(folder, `${year}.txt`), text);
    return folder;
  });
  const train = presidents.map((all) => tokensOf(all.slice(0, -1)));
  return { folders, train, held: tokensOf(presidents.map((all) => all.at(-1) ?? { text: "" })) };
}

interface Job {
  name: string;
  strategy: Record<string, unknown>;
  codec: string;
  rounds: number;
  steps: number;
}

function manifest({ name, strategy, codec, rounds, steps }: Job): string {
  return JSON.stringify({
    apiVersion: "shoal.dev/v1alpha1",
    kind: "TrainingJob",
    metadata: { name },
    spec: {
      model: { family: "gpt2", config: MODEL, tokenizer: { kind: "bytes" } },
      data: { dataset: "sotu", purpose: "research", seqLen: SEQ_LEN, heldOutFraction: 0 },
      rounds,
      cohort: { min: DEVICES, target: DEVICES },
      local: {
        steps,
        stepPolicy: "fixed",
        batchSize: BATCH,
        optimizer: { ...OPTIMIZER, schedule: { ...OPTIMIZER.schedule, warmupSteps: Math.min(50, rounds * steps) } },
      },
      strategy: { weighting: "equal", ...strategy },
      codec: { name: codec, errorFeedback: true },
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

/** Longer than the sampling needs to see the last bytes. */
const SETTLE_MS = 500;

function randomBatch(corpus: Corpus, rngs: readonly Rng[]): Batch {
  const size = BATCH * SEQ_LEN;
  const batch = { tokens: new Int32Array(DEVICES * size), targets: new Int32Array(DEVICES * size) };
  corpus.train.forEach((tokens, device) => {
    for (let b = 0; b < BATCH; b++) {
      const start = (rngs[device] as Rng).int(tokens.length - SEQ_LEN - 1);
      const place = device * size + b * SEQ_LEN;
      batch.tokens.set(tokens.subarray(start, start + SEQ_LEN), place);
      batch.targets.set(tokens.subarray(start + 1, start + 1 + SEQ_LEN), place);
    }
  });
  return batch;
}

/**
 * The model of per-step exchange: the mean of all devices' gradients and one AdamW step, which is one step on their
 * batches side by side, since each has as many tokens.
 */
async function stepwiseLoss(backend: Backend, config: ModelConfig, corpus: Corpus, steps: number): Promise<number> {
  const graph = buildTrainGraph(config, { ...OPTIMIZER, batch: DEVICES * BATCH, seqLen: SEQ_LEN });
  const session = await backend.train(graph);
  const weights = initWeights(config, deriveSeed(SEED, "weights"));
  session.load({ weights, m: new Float32Array(weights.length), v: new Float32Array(weights.length) });
  const rngs = corpus.train.map((_, device) => createRng(deriveSeed(SEED, "stepwise", device)));
  for (let i = 0; i < steps; i++) {
    const { loss } = await session.step(randomBatch(corpus, rngs), learningRateAt(OPTIMIZER, steps, i), i + 1);
    if (i % Math.ceil(steps / 8) === 0) console.log(`per step: step ${i}/${steps}  train loss ${loss.toFixed(4)}`);
  }
  const loss = await heldOutLoss(backend, config, session.state().weights, corpus.held, SEQ_LEN);
  await session.dispose();
  return loss;
}

const MOST_LOSS_RATIO = 1.02;

/**
 * What training costs on the wire, by nats-server's own counters of the devices' connections, in a whole system of real
 * processes: DiLoCo with int4 against per-step exchange in fp32, and Streaming DiLoCo's peaks against DiLoCo's, each at
 * equal steps. Bytes of per-step exchange are measured over some rounds of one step and multiplied; its loss is that of
 * one process that takes the same mean gradients.
 */
export async function communication(options: {
  json?: string | undefined;
  quick: boolean;
  strict: boolean;
}): Promise<void> {
  const periods = options.quick ? 2 : 8;
  const steps = periods * PERIOD;
  const parsed = parseModelConfig({ model_type: "gpt2", ...MODEL });
  if (!parsed.ok) throw new Error("the benchmark's own model is refused");
  const results: BenchResult[] = [];
  const add = (of: string, metric: string, value: number, unit: string, bar: Partial<BenchResult> = {}): void => {
    results.push({ case: of, metric, value, unit, ...bar });
  };
  const root = mkdtempSync(join(tmpdir(), "shoal-communication-"));
  const corpus = writeCorpus(join(root, "data"));
  const fleet = await Fleet.start({ dir: join(root, "shoal") });
  let meter: WireMeter | undefined;
  try {
    const backend = await openOnnxBackend({ threads: 2 });
    const token = await fleet.token();
    corpus.folders.forEach((dataDir, i) =>
      fleet.startDevice({ name: `device-${i + 1}`, dataset: "sotu", dataDir }, token),
    );
    await fleet.waitForDevices(DEVICES);
    meter = await WireMeter.open(fleet.context().natsUrl, credsPaths(join(root, "shoal", "keys")).system);
    const lossOf = async (name: string): Promise<number> =>
      heldOutLoss(backend, parsed.config, await exportedWeights(fleet, name), corpus.held, SEQ_LEN);

    const [wide, narrow] = ["diloco, int4", `streamingDiloco, int4, ${FRAGMENTS} fragments`] as const;
    const stepwise: Job = {
      name: "stepwise",
      strategy: { name: "fedavg" },
      codec: "fp32",
      rounds: STEPWISE_ROUNDS,
      steps: 1,
    };
    const exchanged = await run(fleet, stepwise);
    const diloco: Job = { name: "diloco", strategy: { name: "diloco" }, codec: "int4", rounds: periods, steps: PERIOD };
    const whole = await run(fleet, diloco);
    const streaming: Job = {
      name: "streaming",
      strategy: { name: "streamingDiloco", fragments: FRAGMENTS },
      codec: "int4",
      rounds: periods * FRAGMENTS,
      steps: PERIOD / FRAGMENTS,
    };
    const streamed = await run(fleet, streaming);
    const losses = { diloco: await lossOf("diloco"), streaming: await lossOf("streaming") };
    await meter.close();
    await fleet.stop();
    const reference = await stepwiseLoss(backend, parsed.config, corpus, steps);

    const perStep = meter.total(exchanged.settledMs, exchanged.untilMs);
    const factor = steps / (STEPWISE_ROUNDS - exchanged.settledRounds);
    const per = { up: perStep.up * factor, down: perStep.down * factor };
    const sent = meter.total(whole.fromMs, whole.untilMs);
    const name = "per step, fp32";
    add(name, "held_out_loss", reference, "nats/token");
    add(name, "bytes_up", Math.round(per.up), "B");
    add(name, "bytes_down", Math.round(per.down), "B");
    const least = 400;
    add(wide, "held_out_loss", losses.diloco, "nats/token", {
      ratio: losses.diloco / reference,
      most: MOST_LOSS_RATIO * reference,
    });
    add(wide, "bytes_up", sent.up, "B");
    add(wide, "bytes_down", sent.down, "B");
    add(wide, "times_fewer_up", per.up / sent.up, "x", { least });
    add(wide, "times_fewer_down", per.down / sent.down, "x");
    add(wide, "times_fewer_both", (per.up + per.down) / (sent.up + sent.down), "x", { least });
    const [high, low] = [whole, streamed].map((span) =>
      (meter as WireMeter).worstWindow(span.settledMs, span.untilMs, WINDOW_MS),
    ) as [ReturnType<WireMeter["worstWindow"]>, ReturnType<WireMeter["worstWindow"]>];
    const streamedBytes = meter.total(streamed.fromMs, streamed.untilMs);
    add(narrow, "held_out_loss", losses.streaming, "nats/token", {
      ratio: losses.streaming / losses.diloco,
      most: MOST_LOSS_RATIO * losses.diloco,
    });
    add(narrow, "bytes_up", streamedBytes.up, "B");
    add(narrow, "bytes_down", streamedBytes.down, "B");
    for (const way of ["up", "down", "both"] as const) {
      add(wide, `peak_${way}`, high[way], `B in ${WINDOW_MS} ms`);
      add(narrow, `peak_${way}`, low[way], `B in ${WINDOW_MS} ms`);
      add(narrow, `peak_${way}_times_lower`, high[way] / low[way], "x", { least: 4 });
    }
    add(wide, "seconds", (whole.untilMs - whole.fromMs) / 1000, "s");
    add(narrow, "seconds", (streamed.untilMs - streamed.fromMs) / 1000, "s");
  } finally {
    await meter?.close().catch(() => undefined);
    await fleet.stop();
    rmSync(root, { recursive: true, force: true });
  }
  report("communication", results, options.json, options.strict);
}
