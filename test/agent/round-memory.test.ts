import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import type { ModelConfig } from "#common/graph/config.js";
import { AGENT_BYTES, stepDemand } from "#services/scheduler/demand.js";
import { configOf } from "#test/bench/backend/cases.js";
import { jobOf, measureRounds } from "./support/round-memory.js";

const GPT2 = configOf({ family: "gpt2", vocabSize: 256, contextLength: 64, layers: 4, heads: 6, width: 384 });
const LLAMA = configOf({
  model_type: "llama",
  vocab_size: 2048,
  hidden_size: 384,
  intermediate_size: 1024,
  num_hidden_layers: 4,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  max_position_embeddings: 128,
});

const ADAMW = { name: "adamw", learningRate: 1e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, keepState: true, clipNorm: 1 };
const SGD = { name: "sgd", learningRate: 1e-2, clipNorm: 1 };
const INT8 = { name: "int8", errorFeedback: true };

interface Case {
  readonly name: string;
  readonly config: ModelConfig;
  readonly optimizer: object;
  readonly strategy?: object;
  readonly codec?: object;
  readonly training?: object;
  readonly threads?: number;
}

const CASES: readonly Case[] = [
  { name: "moments and what int8 lost, in lanes", config: GPT2, optimizer: ADAMW, threads: 2 },
  { name: "control variates", config: GPT2, optimizer: SGD, strategy: { name: "scaffold" }, codec: { name: "fp32" } },
  {
    name: "fragments",
    config: GPT2,
    optimizer: ADAMW,
    strategy: { name: "streamingDiloco", fragments: 2, mixing: 0.5 },
  },
  {
    name: "adapters",
    config: LLAMA,
    optimizer: ADAMW,
    training: { lora: { rank: 8, alpha: 16, targets: ["q_proj", "v_proj"] }, base: "int8" },
  },
];

for (const { name, config, optimizer, threads = 1, ...more } of CASES) {
  test(`the planner's memory for a round lies within 20 % of what an agent takes: ${name}`, async (t) => {
    const { strategy = { name: "fedavg" }, codec = INT8, training = {} } = more;
    const data = { dataset: "notes", seqLen: 64, heldOutFraction: 0.3 };
    const job = jobOf({ strategy, codec, training, data, local: { batchSize: 2, steps: 2, optimizer } });
    const folder = await mkdtemp(join(tmpdir(), "shoal-round-memory-"));
    t.teardown(() => rm(folder, { recursive: true }));
    const measured = await measureRounds(job, config, threads, folder);
    const predicted = stepDemand(job, config, false, threads).peakBytes + AGENT_BYTES;
    const error = predicted / measured - 1;
    const said = `predicted ${predicted / 1e6} MB, measured ${measured / 1e6} MB, ${(100 * error).toFixed(1)} %`;
    t.log(said);
    t.true(Math.abs(error) < 0.2, said);
  });
}
