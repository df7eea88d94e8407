import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import type { Backend, Batch } from "#agent/backend/backend.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { learningRateAt } from "#common/domain/schedule.js";
import { Fleet, type DeviceSetup } from "../fleet/fleet.js";
import { exportedWeights, heldOutLoss } from "./held-out.js";
import { type BenchResult, report } from "./report.js";
import { splitByRole, writeShards } from "./shards.js";

const DEVICES = 8;
const BATCH = 12;
const SEQ_LEN = 64;
const SEED = 1337;
const OPTIMIZER = {
  name: "adamw",
  learningRate: 1e-3,
  beta1: 0.9,
  beta2: 0.99,
  eps: 1e-8,
  weightDecay: 0.1,
  clipNorm: 1,
  schedule: { name: "cosine", warmupSteps: 50, minRatio: 0.1 },
  keepState: true,
};

interface Corpus {
  alphabet: string;
  train: string;
  held: Int32Array;
  trainTokens: Int32Array;
}

function readCorpus(data: string): Corpus {
  const text = readFileSync(join(data, "input.txt"), "utf8");
  const alphabet = [...new Set(text)].sort().join("");
  const index = new Map(Array.from(alphabet, (c, i) => [c, i]));
  const encode = (part: string): Int32Array => Int32Array.from(part, (c) => index.get(c) ?? 0);
  const cut = Math.floor(text.length * 0.9);
  return {
    alphabet,
    train: text.slice(0, cut),
    held: encode(text.slice(cut)),
    trainTokens: encode(text.slice(0, cut)),
  };
}

function randomBatch(tokens: Int32Array, rng: Rng): Batch {
  const batch = { tokens: new Int32Array(BATCH * SEQ_LEN), targets: new Int32Array(BATCH * SEQ_LEN) };
  for (let b = 0; b < BATCH; b++) {
    const at = rng.int(tokens.length - SEQ_LEN - 1);
    batch.tokens.set(tokens.subarray(at, at + SEQ_LEN), b * SEQ_LEN);
    batch.targets.set(tokens.subarray(at + 1, at + 1 + SEQ_LEN), b * SEQ_LEN);
  }
  return batch;
}

/** The same model trained on all text in one place. */
async function centralised(backend: Backend, config: ModelConfig, corpus: Corpus, steps: number): Promise<number> {
  const graph = buildTrainGraph(config, { ...OPTIMIZER, batch: BATCH, seqLen: SEQ_LEN });
  const session = await backend.train(graph);
  const weights = initWeights(config, SEED);
  session.load({ weights, m: new Float32Array(weights.length), v: new Float32Array(weights.length) });
  const rng = createRng(SEED);
  for (let i = 0; i < steps; i++) {
    await session.step(randomBatch(corpus.trainTokens, rng), learningRateAt(OPTIMIZER, steps, i), i + 1);
  }
  const loss = await heldOutLoss(backend, config, session.state().weights, corpus.held, SEQ_LEN);
  await session.dispose();
  return loss;
}

function manifest(corpus: Corpus, rounds: number, codec: string): string {
  return JSON.stringify({
    apiVersion: "shoal.dev/v1alpha1",
    kind: "TrainingJob",
    metadata: { name: `shakespeare-${codec}` },
    spec: {
      model: {
        family: "gpt2",
        config: { vocab_size: corpus.alphabet.length, n_positions: SEQ_LEN, n_layer: 4, n_head: 4, n_embd: 128 },
        tokenizer: { kind: "chars", chars: corpus.alphabet },
      },
      data: { dataset: "shakespeare", purpose: "research", seqLen: SEQ_LEN, heldOutFraction: 0 },
      rounds,
      cohort: { min: DEVICES, target: DEVICES },
      local: { steps: 50, stepPolicy: "fixed", batchSize: BATCH, optimizer: OPTIMIZER },
      strategy: { name: "diloco", outerLearningRate: 0.7, outerMomentum: 0.9 },
      codec: { name: codec, errorFeedback: true },
      evaluation: { everyRounds: 0, finalRound: false },
      roundDeadlineMs: 600_000,
      seed: SEED,
    },
  });
}

/**
 * Federated training on tiny Shakespeare split by speaking role, by the whole system of real processes, beside a
 * centralised run: 40 rounds of 50 local steps on 8 devices against 2000 steps in one place.
 */
export async function shakespeare(options: {
  data?: string | undefined;
  json?: string | undefined;
  quick: boolean;
}): Promise<void> {
  if (options.data === undefined) throw new Error("name the folder that holds input.txt with --data DIR");
  const corpus = readCorpus(options.data);
  const rounds = options.quick ? 2 : 40;
  const parsed = parseModelConfig({
    family: "gpt2",
    vocabSize: corpus.alphabet.length,
    contextLength: SEQ_LEN,
    layers: 4,
    heads: 4,
    width: 128,
  });
  if (!parsed.ok) throw new Error("the benchmark's own model is refused");
  const results: BenchResult[] = [];
  const root = mkdtempSync(join(tmpdir(), "shoal-shakespeare-"));
  const folders = writeShards(join(root, "data"), splitByRole(corpus.train, DEVICES));
  const fleet = await Fleet.start({ dir: join(root, "shoal") });
  try {
    const token = await fleet.token();
    folders.forEach((dataDir, i) => {
      const setup: DeviceSetup = { name: `device-${i + 1}`, dataset: "shakespeare", dataDir };
      fleet.startDevice(setup, token);
    });
    await fleet.waitForDevices(DEVICES);
    const backend = await openOnnxBackend({ threads: 2 });
    const started = performance.now();
    await fleet.apply(manifest(corpus, rounds, "int8"));
    const job = await fleet.waitForJob("shakespeare-int8", 3_600_000, (now) =>
      console.log(
        `round ${now.status?.completedRounds ?? 0}/${rounds}  train loss ${now.status?.trainLoss?.toFixed(4) ?? "-"}`,
      ),
    );
    if (job.status?.phase !== "Completed") throw new Error(`the job is ${job.status?.phase ?? "gone"}`);
    const seconds = (performance.now() - started) / 1000;
    const weights = await exportedWeights(fleet, "shakespeare-int8");
    const federated = await heldOutLoss(backend, parsed.config, weights, corpus.held, SEQ_LEN);
    const name = `${rounds}x50 int8, ${DEVICES} devices`;
    results.push({
      case: name,
      metric: "held_out_loss",
      value: federated,
      unit: "nats/token",
      bound: 1.76,
      ratio: federated / 1.76,
    });
    results.push({ case: name, metric: "seconds", value: seconds, unit: "s" });
    results.push({ case: name, metric: "bytes_up", value: job.status.bytesUp, unit: "B" });
    results.push({ case: name, metric: "bytes_down", value: job.status.bytesDown, unit: "B" });
    await fleet.stop();
    const one = await centralised(backend, parsed.config, corpus, rounds * 50);
    results.push({
      case: `centralised ${rounds * 50} steps`,
      metric: "held_out_loss",
      value: one,
      unit: "nats/token",
      bound: 1.84,
      ratio: one / 1.84,
    });
  } finally {
    await fleet.stop();
    rmSync(root, { recursive: true, force: true });
  }
  report("shakespeare", results, options.json);
}
