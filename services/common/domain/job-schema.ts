import { z } from "zod";
import { MAX_BLOCK } from "../tensor/codecs/topk.js";
import { API_VERSION } from "./resources.js";
import { STRATEGIES } from "./strategy-table.js";

/** What a manifest that leaves a field out gets. The one place for it. */
export const JOB_DEFAULTS = {
  rounds: 10,
  seed: 1,
  roundDeadlineMs: 0,
  suspended: false,
  model: { family: "gpt2" },
  tokenizer: { kind: "bytes" },
  /** Sequences are as long as the model's context, but no longer than this. */
  data: { purpose: "research", seqLen: 64, heldOutFraction: 0.1, minTokens: 0 },
  /** Target 0 aims at every device that may take part. */
  cohort: { min: 1, target: 0, overCommit: 1 },
  training: { mode: "full", base: "float32", recompute: "auto" },
  /** Alpha is twice the rank. */
  lora: { rank: 8, targets: ["all-linear"], rankStabilized: false },
  local: {
    steps: 50,
    stepPolicy: "proportional",
    minSteps: 1,
    batchSize: 8,
    accumulate: 1,
    packing: false,
    proximalMu: 0,
  },
  optimizer: { name: "adamw", learningRate: 1e-3, weightDecay: 0.1, clipNorm: 1, keepState: true },
  adamw: { beta1: 0.9, beta2: 0.99, eps: 1e-8 },
  sgd: { momentum: 0.9 },
  /** Warm-up is this long, but no longer than a round. */
  schedule: { name: "cosine", warmupSteps: 50, minRatio: 0.1 },
  /** What belongs to single strategies is in strategy-table.ts. Robust ones weigh all updates the same. */
  strategy: { name: "diloco", weighting: "tokens", maxUpdateNorm: 0, normBound: 0 },
  codec: { name: "int8", errorFeedback: true, stochasticRounding: false, down: "none" },
  /** Sizes are SparseLoCo's, from the codec itself. */
  topk: { errorDecay: 0.95 },
  evaluation: { everyRounds: 1, finalRound: true },
} as const;

/** Constants of an optimizer that are not of the other one. */
export const FOREIGN_CONSTANTS: Readonly<Record<string, readonly ("beta1" | "beta2" | "eps" | "momentum")[]>> = {
  adamw: ["momentum"],
  sgd: ["beta1", "beta2", "eps"],
};

const D = JOB_DEFAULTS;
/** A round's name is the job's with "-" and up to six digits, within 63 characters. */
export const MAX_JOB_NAME = 56;
/** Longest lists and texts: a manifest is at most 1 MiB, but a label is not a place for documents. */
const MAX_LABEL = 63;
const DAY_MS = 86_400_000;

const whole = (min: number, max: number): z.ZodNumber => {
  const error = `must be a whole number from ${min} to ${max}`;
  return z.number({ error }).int(error).min(min, error).max(max, error);
};
const between = (min: number, max: number): z.ZodNumber => {
  const error = `must be a number from ${min} to ${max}`;
  return z.number({ error }).min(min, error).max(max, error);
};
const above = (min: number, max: number): z.ZodNumber => {
  const error = `must be a number above ${min} and at most ${max}`;
  return z.number({ error }).gt(min, error).max(max, error);
};
const truth = z.boolean({ error: "must be true or false" });
const text = (max: number): z.ZodString =>
  z.string({ error: "must be text" }).max(max, `must be at most ${max} characters`);
const label = text(MAX_LABEL).min(1, "must not be empty");
const labels = z.record(label, text(MAX_LABEL), { error: "must be a map of text to text" });
const dnsLabel = (max: number): z.ZodString => {
  const error = `must be 1 to ${max} lower-case letters, digits and inner "-"`;
  return z
    .string({ error })
    .max(max, error)
    .regex(/^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/, error);
};
const object = <S extends z.core.$ZodShape>(shape: S): z.ZodObject<S, z.core.$strict> =>
  z.strictObject(shape, { error: (issue) => (issue.code === "invalid_type" ? "must be a map of fields" : undefined) });

const metadata = (maxName: number) =>
  object({
    name: dnsLabel(maxName),
    labels: labels.default({}),
    annotations: z.record(label, text(4096), { error: "must be a map of text to text" }).default({}),
  });

const digest = z
  .string({ error: "must be text" })
  .regex(/^sha256:[0-9a-f]{64}$/, 'must be "sha256:" and 64 hexadecimal digits');

const tokenizer = object({
  kind: z.enum(["bytes", "chars", "huggingface"]).default(D.tokenizer.kind),
  chars: text(65_536).default(""),
  blob: object({ digest, sizeBytes: whole(1, 268_435_456) }).optional(),
});

const optimizer = object({
  name: z.enum(["adamw", "sgd"]).default(D.optimizer.name),
  learningRate: above(0, 10).default(D.optimizer.learningRate),
  beta1: between(0, 0.99999).optional(),
  beta2: between(0, 0.9999999).optional(),
  eps: above(0, 1).optional(),
  momentum: between(0, 0.99999).optional(),
  weightDecay: between(0, 10).default(D.optimizer.weightDecay),
  clipNorm: between(0, 1e6).default(D.optimizer.clipNorm),
  schedule: object({
    name: z.enum(["constant", "linear", "cosine"]).default(D.schedule.name),
    warmupSteps: whole(0, 10_000_000).optional(),
    minRatio: between(0, 1).default(D.schedule.minRatio),
  }).prefault({}),
  keepState: truth.default(D.optimizer.keepState),
});

const names = (what: string, least: number): z.ZodArray<z.ZodString> =>
  z
    .array(text(256).min(1, "must not be empty"), { error: `must be a list of ${what}` })
    .min(least, `must name at least ${least}`)
    .max(1024, "must have at most 1024 entries");

const training = object({
  mode: z.enum(["full", "lora"]).default(D.training.mode),
  lora: object({
    rank: whole(1, 4096).default(D.lora.rank),
    alpha: above(0, 1e6).optional(),
    targets: names("projections", 1).default([...D.lora.targets]),
    rankStabilized: truth.default(D.lora.rankStabilized),
  }).optional(),
  base: z.enum(["float32", "int8", "int4"]).default(D.training.base),
  trained: names("tensor names", 0).default([]),
  recompute: z.enum(["auto", "always", "never"]).default(D.training.recompute),
});

const strategy = object({
  name: z.enum(Object.keys(STRATEGIES) as (keyof typeof STRATEGIES)[]).default(D.strategy.name),
  outerLearningRate: above(0, 10).optional(),
  outerMomentum: between(0, 0.9999).optional(),
  beta1: between(0, 0.9999).optional(),
  beta2: between(0, 0.999999).optional(),
  tau: above(0, 1).optional(),
  biasCorrection: truth.optional(),
  trim: between(0, 0.49).optional(),
  byzantine: whole(0, 100_000).optional(),
  selected: whole(0, 100_000).optional(),
  clipRadius: between(0, 1e12).optional(),
  clipIterations: whole(1, 100).optional(),
  fragments: whole(1, 256).optional(),
  mixing: between(0, 0.99).optional(),
  overlapSteps: whole(0, 1_000_000).optional(),
  population: whole(0, 1_000_000).optional(),
  bufferSize: whole(1, 1000).optional(),
  maxStaleness: whole(1, 100).optional(),
  weighting: z.enum(["tokens", "equal"]).optional(),
  maxUpdateNorm: between(0, 1e12).default(D.strategy.maxUpdateNorm),
  normBound: between(0, 1e12).default(D.strategy.normBound),
});

const codec = object({
  name: z.enum(["fp32", "bf16", "int8", "int4", "topk"]).default(D.codec.name),
  errorFeedback: truth.default(D.codec.errorFeedback),
  topk: object({
    keep: whole(1, MAX_BLOCK).optional(),
    block: whole(1, MAX_BLOCK).optional(),
    valueBits: z.literal([2, 4, 8]).optional(),
  }).optional(),
  errorDecay: above(0, 1).optional(),
  stochasticRounding: truth.default(D.codec.stochasticRounding),
  down: z.enum(["none", "int8", "int4"]).default(D.codec.down),
});

const spec = object({
  model: object({
    base: dnsLabel(63).optional(),
    family: text(MAX_LABEL).min(1, "must not be empty").optional(),
    config: z.record(z.string(), z.json(), { error: "must be a map of the family's fields" }).optional(),
    tokenizer: tokenizer.optional(),
  }),
  data: object({
    dataset: dnsLabel(63),
    purpose: label.default(D.data.purpose),
    seqLen: whole(2, 16_384).optional(),
    heldOutFraction: between(0, 0.5).default(D.data.heldOutFraction),
    minTokens: whole(0, 1e12).default(D.data.minTokens),
  }),
  rounds: whole(1, 100_000).default(D.rounds),
  cohort: object({
    min: whole(1, 100_000).default(D.cohort.min),
    target: whole(0, 100_000).default(D.cohort.target),
    overCommit: between(1, 3).default(D.cohort.overCommit),
    selector: labels.default({}),
  }).prefault({}),
  local: object({
    steps: whole(1, 1_000_000).default(D.local.steps),
    stepPolicy: z.enum(["fixed", "proportional"]).default(D.local.stepPolicy),
    minSteps: whole(1, 1_000_000).default(D.local.minSteps),
    batchSize: whole(1, 4096).default(D.local.batchSize),
    accumulate: whole(1, 4096).default(D.local.accumulate),
    packing: truth.default(D.local.packing),
    proximalMu: between(0, 1e4).default(D.local.proximalMu),
    optimizer: optimizer.prefault({}),
  }).prefault({}),
  training: training.prefault({}),
  strategy: strategy.prefault({}),
  codec: codec.prefault({}),
  evaluation: object({
    everyRounds: whole(0, 100_000).default(D.evaluation.everyRounds),
    finalRound: truth.default(D.evaluation.finalRound),
  }).prefault({}),
  roundDeadlineMs: whole(0, 30 * DAY_MS).default(D.roundDeadlineMs),
  seed: whole(0, 4_294_967_295).default(D.seed),
  suspended: truth.default(D.suspended),
});

const apiVersion = z.literal(API_VERSION);

/** A TrainingJob manifest: shapes and ranges of single fields. What must fit together is checked in manifest.ts. */
export const jobSchema = object({
  apiVersion,
  kind: z.literal("TrainingJob"),
  metadata: metadata(MAX_JOB_NAME),
  spec,
});

/** A Dataset manifest: the passport of data that stays on the devices. */
export const datasetSchema = object({
  apiVersion,
  kind: z.literal("Dataset"),
  metadata: metadata(63),
  spec: object({
    description: text(4096).default(""),
    steward: text(256).default(""),
    purposes: z
      .array(label, { error: "must be a list of purposes" })
      .max(64, "must be at most 64 purposes")
      .default([]),
    minCohort: whole(0, 100_000).default(0),
    licence: text(256).default(""),
  }).prefault({}),
});

export type JobManifest = z.output<typeof jobSchema>;
