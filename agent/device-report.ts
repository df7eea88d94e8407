import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
import { parameterLayout } from "#common/graph/layout.js";
import { type TimedClass, timeBandwidth, type Workbench } from "./backend/node-timing.js";
import { inspectMachine, type Machine } from "./runtime/machine.js";
import { predictStep, type StepPrediction } from "./step-prediction.js";

/** A model to predict for. */
export interface ReportedModel {
  readonly name: string;
  readonly config: ModelConfig;
  readonly batch: number;
  readonly seqLen: number;
}

/** What matrix products of one shape achieve. */
export interface ProductSpeed {
  readonly model: string;
  readonly mode: string;
  /** Shapes of the two operands. */
  readonly operands: readonly (readonly number[])[];
  readonly count: number;
  readonly gflops: number;
}

export interface ModelSpeed extends Omit<StepPrediction, "classes"> {
  readonly model: string;
  readonly mode: "full" | "lora";
  readonly batch: number;
  readonly seqLen: number;
}

export interface DeviceReport {
  readonly machine: Machine;
  readonly threads: number;
  /** Between memory and processor, reading and writing together. */
  readonly bandwidthBytesPerSecond: number;
  readonly products: readonly ProductSpeed[];
  readonly models: readonly ModelSpeed[];
  /** Models that this machine's memory could not even hold, and why. */
  readonly skipped: readonly string[];
}

const MODES = [
  ["full", {}],
  ["lora", { lora: { rank: 8, alpha: 16, targets: ["all-linear"] } }],
] as const;

function configOf(fields: unknown): ModelConfig {
  const parsed = parseModelConfig(fields);
  if (parsed.ok) return parsed.config;
  throw new RangeError(parsed.violations.map(({ field, description }) => `${field} ${description}`).join("; "));
}

const gpt2 = (width: number, layers: number, heads: number, contextLength: number): ModelConfig =>
  configOf({ family: "gpt2", vocabSize: 256, contextLength, layers, heads, width });

/** SmolLM2-135M's shape. */
const SMOLLM2 = {
  model_type: "llama",
  vocab_size: 49_152,
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  max_position_embeddings: 2048,
  rope_theta: 100_000,
  rms_norm_eps: 1e-5,
  hidden_act: "silu",
  tie_word_embeddings: true,
};

/** Predicted for where no model is named: the shapes of small, middle and, of those that fit a gateway, large ones. */
export const referenceModels = (): ReportedModel[] => [
  { name: "gpt-256x4", config: gpt2(256, 4, 4, 128), batch: 8, seqLen: 128 },
  { name: "gpt-384x12", config: gpt2(384, 12, 6, 256), batch: 4, seqLen: 256 },
  { name: "smollm2-135m", config: configOf(SMOLLM2), batch: 1, seqLen: 256 },
];

/** Bytes a parameter takes at least, in whatever mode it is measured. */
const MEASURED_BYTES = 8;

/** Matrix products by what they take together, the most first. */
function speedsOf(model: string, mode: string, classes: readonly TimedClass[]): ProductSpeed[] {
  return classes
    .filter(({ flops, ms }) => flops > 0 && ms > 0)
    .sort((a, b) => b.count * b.ms - a.count * a.ms)
    .map(({ inputs, count, flops, ms }) => ({
      model,
      mode,
      operands: inputs.slice(0, 2),
      count,
      gflops: flops / (ms * 1e6),
    }));
}

/**
 * Measures what this device does at the shapes of real layers, and predicts how fast it would train each model, in full
 * and with adapters. Takes seconds for each small model, minutes for large ones.
 */
export async function reportDevice(
  bench: Workbench,
  threads: number,
  models: readonly ReportedModel[],
  onModel: (name: string, mode: string) => void,
): Promise<DeviceReport> {
  const machine = inspectMachine();
  const products: ProductSpeed[] = [];
  const speeds: ModelSpeed[] = [];
  const skipped: string[] = [];
  for (const { name, config, batch, seqLen } of models) {
    const bytes = MEASURED_BYTES * parameterLayout(config).total;
    if (bytes > machine.memoryBytes) {
      skipped.push(`${name}: its tensors need ${bytes} bytes, the device has ${machine.memoryBytes}`);
      continue;
    }
    for (const [mode, variant] of MODES) {
      onModel(name, mode);
      const { classes, ...speed } = await predictStep(bench, config, { batch, seqLen, variant });
      products.push(...speedsOf(name, mode, classes));
      speeds.push({ model: name, mode, batch, seqLen, ...speed });
    }
  }
  const bandwidthBytesPerSecond = await timeBandwidth(bench);
  return { machine, threads, bandwidthBytesPerSecond, products, models: speeds, skipped };
}
