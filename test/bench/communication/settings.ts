import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";

/** Whose addresses the devices have: one president a device. */
export const PRESIDENTS = ["Theodore Roosevelt", "Grover Cleveland"];
export const DEVICES = PRESIDENTS.length;
export const SEQ_LEN = 32;
export const SEED = 42;
export const FRAGMENTS = 8;
/** Sequences of a device's step. */
export const BATCH = 8;
/** Local steps between two synchronisations of a parameter. */
export const PERIOD = 64;
export const MODEL = { vocab_size: 256, n_positions: SEQ_LEN, n_layer: FRAGMENTS, n_head: 2, n_embd: 40 };

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

/** The optimizer of local and of common steps, at this peak rate. */
export const optimizerAt = (learningRate: number): typeof OPTIMIZER => ({ ...OPTIMIZER, learningRate });

/** How the model is trained that everyone starts from. */
export const BASE = { steps: 2000, batch: 16, learningRate: 2e-3 };

/** Peak rates of per-step exchange that are tried; the best one counts. */
export const STEPWISE_RATES = [2e-3, 4e-3, 8e-3, 1.6e-2];

/** Of DiLoCo: tried out beforehand on a narrower model. */
export const DILOCO = { learningRate: 2e-3, outerLearningRate: 1, outerMomentum: 0.8 };

/** The model's shape. */
export function modelConfig(): ModelConfig {
  const parsed = parseModelConfig({ model_type: "gpt2", ...MODEL });
  if (!parsed.ok) throw new Error("the benchmark's own model is refused");
  return parsed.config;
}
