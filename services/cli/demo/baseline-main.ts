import { readFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import type { Backend } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { readDocuments } from "#agent/data/documents.js";
import { folderSource } from "#agent/data/source.js";
import { splitDocuments, type Shard } from "#agent/data/split.js";
import { openTokenizer } from "#agent/data/tokenizers.js";
import { importCheckpoint } from "#common/graph/checkpoint.js";
import { deriveSeed } from "#common/domain/seed.js";
import { parseModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { OptimizerSpec, TokenizerSpec } from "#proto/shoal/v1/job.js";
import { heldOutLoss, joinStreams, trainAlone, type TrainingSetup } from "./baseline.js";
import { baselinePlanSchema, type BaselineLine, type BaselinePlan } from "./baseline-plan.js";
import { DEMO } from "./settings.js";

const STEPS_A_LINE = 20;

const tell = (line: BaselineLine): void => void process.stdout.write(`${JSON.stringify(line)}\n`);

function setupOf(seed: number): TrainingSetup {
  const parsed = parseModelConfig({ family: "gpt2", ...DEMO.model });
  if (!parsed.ok) throw new Error(`the demo's model cannot be built: ${JSON.stringify(parsed.violations)}`);
  const { batchSize, seqLen } = DEMO;
  const { config } = parsed;
  // The weights the scheduler starts the job with.
  const initial = initWeights(config, deriveSeed(seed, "weights"));
  return { config, optimizer: OptimizerSpec.fromPartial(DEMO.optimizer), batchSize, seqLen, seed, initial };
}

async function readShards(folders: BaselinePlan["folders"]): Promise<Map<string, Shard>> {
  const opened = openTokenizer(TokenizerSpec.fromPartial({ kind: "bytes" }));
  if (!opened.ok) throw new Error(opened.problem);
  const shards = new Map<string, Shard>();
  for (const [device, folder] of Object.entries(folders)) {
    const { texts } = await readDocuments(folderSource(folder));
    shards.set(device, splitDocuments(texts, opened.tokenizer, DEMO.heldOutFraction));
  }
  return shards;
}

function readWeights(folder: string): Float32Array {
  const [config, tensors] = ["config.json", "model.safetensors"].map((name) => readFileSync(join(folder, name)));
  if (config === undefined || tensors === undefined) throw new Error(`${folder} is not complete`);
  const checkpoint = importCheckpoint(config, tensors);
  if (!checkpoint.ok) throw new Error(`${folder}: ${JSON.stringify(checkpoint.violations)}`);
  return checkpoint.weights;
}

async function runPlan(backend: Backend, plan: BaselinePlan): Promise<void> {
  const setup = setupOf(plan.seed);
  const shards = await readShards(plan.folders);
  const everyone = [...shards.values()];
  const judge = async (name: string, weights: Float32Array): Promise<void> =>
    tell({ kind: "loss", name, loss: await heldOutLoss(backend, setup, weights, everyone) });
  if (plan.initial) await judge("initial", setup.initial);
  for (const [name, folder] of Object.entries(plan.checkpoints)) await judge(name, readWeights(folder));
  for (const { name, devices, steps } of plan.runs) {
    const streams = devices.map((device) => shards.get(device)?.train ?? new Int32Array(0));
    const weights = await trainAlone(backend, setup, joinStreams(streams), steps, (step, loss) => {
      if (step % STEPS_A_LINE === 0 || step === steps) tell({ kind: "step", name, step, steps, loss });
    });
    await judge(name, weights);
  }
}

const plan = baselinePlanSchema.parse(JSON.parse(await text(process.stdin)));
await runPlan(await openOnnxBackend({ threads: plan.threads }), plan);
