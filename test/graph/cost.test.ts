import test from "ava";
import { type CostOptions, estimateCost } from "#common/graph/cost.js";
import { GraphBuilder } from "#common/graph/builder.js";
import { memoryOf } from "#common/graph/memory.js";
import { add, exp, gemm, mul, reshape } from "#common/graph/ops.js";
import type { ModelConfig } from "#common/graph/config.js";
import { trainModel } from "#common/graph/train.js";
import { ADAMW, configOf } from "#test/bench/backend/cases.js";
import { Worker } from "#test/bench/backend/worker.js";

const gpt2 = (width: number, layers: number, heads: number, contextLength: number): ModelConfig =>
  configOf({ family: "gpt2", vocabSize: 256, contextLength, layers, heads, width });

const LLAMA = configOf({
  model_type: "llama",
  vocab_size: 2048,
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 6,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  max_position_embeddings: 256,
});
const LORA = { rank: 8, alpha: 16, targets: ["q_proj", "v_proj"] };

/** Each is measured in a process of its own. */
const STEPS: readonly { name: string; config: ModelConfig; options: CostOptions; threads: number }[] = [
  { name: "wide", config: gpt2(512, 3, 8, 64), options: { batch: 2, seqLen: 64 }, threads: 1 },
  { name: "wide in lanes", config: gpt2(512, 3, 8, 64), options: { batch: 2, seqLen: 64 }, threads: 2 },
  {
    name: "recomputed",
    config: gpt2(256, 4, 4, 128),
    options: { batch: 8, seqLen: 128, recompute: true, packed: true },
    threads: 1,
  },
  {
    name: "in parts",
    config: gpt2(384, 6, 6, 64),
    options: { batch: 8, seqLen: 64, accumulate: 4, optimizer: "sgd", momentum: 0.9 },
    threads: 1,
  },
  { name: "adapters", config: LLAMA, options: { batch: 4, seqLen: 128, variant: { lora: LORA } }, threads: 1 },
  {
    name: "int8",
    config: LLAMA,
    options: { batch: 4, seqLen: 128, variant: { lora: LORA, base: "int8" } },
    threads: 1,
  },
];

test("the predicted peak of a step lies within 15 % of the measured one", async (t) => {
  const bare = await Worker.start({ kind: "idle" });
  await bare.worker.stop();
  for (const { name, config, options, threads } of STEPS) {
    const { optimizer, momentum = 0, ...shape } = options;
    const step =
      optimizer === "sgd" ? { ...ADAMW, ...shape, optimizer, momentum, clipNorm: 1 } : { ...ADAMW, ...shape };
    const { worker } = await Worker.start({ kind: "step", config, options: step, threads });
    try {
      const measured = (await worker.run(3)).peakBytes - bare.report.peakBytes;
      const predicted = estimateCost(config, { ...options, threads }).peakBytes;
      const error = predicted / measured - 1;
      const said = `${name}: predicted ${predicted / 1e6} MB, measured ${measured / 1e6} MB, ${(100 * error).toFixed(1)} %`;
      t.log(said);
      t.true(Math.abs(error) < 0.15, said);
    } finally {
      await worker.stop();
    }
  }
});

test("what a graph holds is counted by hand", (t) => {
  const g = new GraphBuilder();
  const x = g.input("x", "float32", [10, 10]);
  const product = gemm(g, x, x);
  // Over the product, which nobody else reads.
  const shifted = add(g, product, g.scalar(1));
  const twice = exp(g, reshape(g, shifted, [100]));
  // Reads the sum again: exp may not write over it.
  g.output("y", mul(g, twice, reshape(g, shifted, [100])));
  t.deepEqual(memoryOf(g.model()), { inputBytes: 400, workingBytes: 800, constantBytes: 0, nodes: 6 });
});

test("blocks that are computed again are not kept", (t) => {
  const at = (recompute: boolean): number =>
    memoryOf(trainModel(gpt2(64, 12, 4, 64), { ...ADAMW, batch: 4, seqLen: 64, recompute })).workingBytes;
  t.true(at(true) < 0.4 * at(false), `${at(true)} bytes beside ${at(false)}`);
});

test("a model of many blocks costs what its whole graph tells", (t) => {
  const shape = { batch: 2, seqLen: 16 };
  const many = gpt2(64, 7, 4, 16);
  // A pattern with a digit makes it go through all blocks.
  const whole = estimateCost(many, { ...shape, variant: { trained: ["*", "transformer.h.0.*"] } });
  t.deepEqual(estimateCost(many, shape), whole);
});
