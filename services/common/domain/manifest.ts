import {
  ModelSpec,
  type OptimizerSpec,
  TrainingJob,
  type TrainingJobSpec,
  type TrainingSpec,
} from "#proto/shoal/v1/job.js";
import { Dataset } from "#proto/shoal/v1/model.js";
import { checkCombination, completedCodec, completedStrategy } from "./combination.js";
import { datasetSchema, FOREIGN_CONSTANTS, JOB_DEFAULTS, type JobManifest, jobSchema } from "./job-schema.js";
import type { Violation } from "./resources.js";
import { strategyFacts } from "./strategy-table.js";
import { showValue, toViolations } from "./violation.js";

/** What is wrong with a field of a model or a variant, as the graph room says it. */
interface GraphViolation {
  readonly field: string;
  readonly value: unknown;
  readonly description: string;
}

/** What the graph room knows of a model whose config can be built. */
export interface ModelFacts {
  vocabSize: number;
  contextLength: number;
  /** What of a training does not fit the model, by its fields. */
  objections(training: TrainingSpec): readonly GraphViolation[];
  /** Layers that have tensors among those trained; only asked where there are no objections. */
  trainedLayers(training: TrainingSpec | undefined): number;
}

/** What the graph room says of a model's config. Passed in, since this room may not import that one. */
export type ModelReading = ({ ok: true } & ModelFacts) | { ok: false; violations: readonly GraphViolation[] };

/** Reads a config in the family's own Hugging Face field names. */
export type ReadModel = (family: string, config: Readonly<Record<string, unknown>>) => ModelReading;

export type Decoded<T> = { ok: true; value: T } | { ok: false; violations: Violation[] };

const BYTE_TOKENS = 256;

function refused(field: string, value: unknown, description: string): Violation {
  return { field, value: showValue(value), description };
}

/** An alphabet must name every token of the model once. */
function checkAlphabet(chars: string, vocabSize: number): Violation[] {
  const field = "spec.model.tokenizer.chars";
  const letters = Array.from(chars);
  const twice = letters.find((letter, i) => letters.indexOf(letter) !== i);
  if (twice !== undefined)
    return [refused(field, chars, `holds ${JSON.stringify(twice)} more than once; name each character once`)];
  if (letters.length === vocabSize) return [];
  const description = `has ${letters.length} characters, but the model has ${vocabSize} tokens; set config's vocabulary to ${letters.length}`;
  return [refused(field, chars, description)];
}

function checkTokenizer(tokenizer: JobManifest["spec"]["model"]["tokenizer"], vocabSize: number): Violation[] {
  const kind = tokenizer?.kind ?? JOB_DEFAULTS.tokenizer.kind;
  const at = "spec.model.tokenizer";
  if (kind !== "chars" && tokenizer !== undefined && tokenizer.chars !== "") {
    return [refused(`${at}.chars`, tokenizer.chars, 'is only for kind "chars"; leave it out or change the kind')];
  }
  if (kind !== "huggingface" && tokenizer?.blob !== undefined) {
    return [
      refused(`${at}.blob`, tokenizer.blob.digest, 'is only for kind "huggingface"; leave it out or change the kind'),
    ];
  }
  if (kind === "chars") return checkAlphabet(tokenizer?.chars ?? "", vocabSize);
  if (kind === "huggingface") {
    return tokenizer?.blob === undefined
      ? [refused(`${at}.blob`, undefined, 'is missing: kind "huggingface" needs the tokenizer.json as a blob')]
      : [];
  }
  if (vocabSize >= BYTE_TOKENS) return [];
  return [
    refused(
      at,
      kind,
      `has ${BYTE_TOKENS} tokens, but the model ${vocabSize}; set config's vocabulary to ${BYTE_TOKENS}`,
    ),
  ];
}

interface CheckedModel {
  violations: Violation[];
  /** Undefined for a stored model, against which `checkStored` holds the job. */
  facts: ModelFacts | undefined;
}

/** Either a stored model alone, or a new one that can be built. */
function checkModel(model: JobManifest["spec"]["model"], readModel: ReadModel): CheckedModel {
  if (model.base !== undefined) {
    const extra = (["family", "config", "tokenizer"] as const).filter((key) => model[key] !== undefined);
    const remedy = `comes with the base model "${model.base}"; leave it out, or leave base out for a new model`;
    return {
      violations: extra.map((key) => refused(`spec.model.${key}`, model[key], remedy)),
      facts: undefined,
    };
  }
  if (model.config === undefined) {
    const remedy = "is missing: give the configuration of a new model, or base for a stored one";
    return { violations: [refused("spec.model.config", undefined, remedy)], facts: undefined };
  }
  const reading = readModel(model.family ?? JOB_DEFAULTS.model.family, model.config);
  if (reading.ok) {
    return { violations: checkTokenizer(model.tokenizer, reading.vocabSize), facts: reading };
  }
  const violations = reading.violations.map(({ field, value, description }) =>
    field === "family" || field === "model_type"
      ? refused("spec.model.family", model.family, description)
      : refused(["spec.model.config", field].filter((part) => part !== "").join("."), value, description),
  );
  return { violations, facts: undefined };
}

const tooLong = (seqLen: number, contextLength: number): Violation[] =>
  seqLen <= contextLength
    ? []
    : [
        refused(
          "spec.data.seqLen",
          seqLen,
          `is above the model's context length (${contextLength}); lower it or use a larger model`,
        ),
      ];

/** Every fragment of the model needs a layer of its own. */
function tooFewLayers(spec: TrainingJobSpec | undefined, facts: ModelFacts): Violation[] {
  const { name = "", fragments = 0 } = spec?.strategy ?? {};
  if (strategyFacts(name)?.streaming !== true) return [];
  const layers = facts.trainedLayers(spec?.training);
  if (fragments <= layers) return [];
  const description = `is above the ${layers} layers that are trained, and a fragment is made of whole layers; lower it`;
  return [refused("spec.strategy.fragments", fragments, description)];
}

/** What single fields cannot know of one another. */
function checkTogether({ cohort, local, rounds }: JobManifest["spec"]): Violation[] {
  const found: Violation[] = [];
  const refuse = (field: string, value: number, description: string): void => {
    found.push(refused(field, value, description));
  };
  if (cohort.target > 0 && cohort.min > cohort.target) {
    refuse(
      "spec.cohort.min",
      cohort.min,
      `is above target (${cohort.target}); lower min, raise target, or set target 0 for every device`,
    );
  }
  if (local.minSteps > local.steps) {
    refuse("spec.local.minSteps", local.minSteps, `is above steps (${local.steps}); lower minSteps or raise steps`);
  }
  if (local.batchSize % local.accumulate !== 0) {
    const description = `does not divide batchSize (${local.batchSize}) into equal parts; use one of its divisors`;
    refuse("spec.local.accumulate", local.accumulate, description);
  }
  const warmup = local.optimizer.schedule.warmupSteps;
  if (warmup !== undefined && warmup > rounds * local.steps) {
    const description = `is longer than the job (${rounds} rounds of ${local.steps} steps); lower it`;
    refuse("spec.local.optimizer.schedule.warmupSteps", warmup, description);
  }
  return [...found, ...checkOptimizer(local.optimizer)];
}

/** Constants of the other optimizer would be silently without effect. */
function checkOptimizer(optimizer: JobManifest["spec"]["local"]["optimizer"]): Violation[] {
  const { name } = optimizer;
  const owner = name === "sgd" ? "adamw" : "sgd";
  return (FOREIGN_CONSTANTS[name] ?? [])
    .filter((key) => optimizer[key] !== undefined)
    .map((key) => {
      const description = `is only for the optimizer "${owner}"; leave it out or change the name`;
      return refused(`spec.local.optimizer.${key}`, optimizer[key], description);
    });
}

/** What a training says that cannot be, whatever the model. */
function checkTraining({ training, model }: JobManifest["spec"]): Violation[] {
  const { mode, lora, base, trained } = training;
  const at = "spec.training";
  const found: Violation[] = [];
  if (mode === "full" && lora !== undefined) {
    found.push(refused(`${at}.lora`, lora, 'is only for mode "lora"; leave it out or change the mode'));
  }
  if (mode === "lora" && model.base === undefined) {
    const description = 'needs a stored model to stand beside: name one as spec.model.base, or use mode "full"';
    found.push(refused(`${at}.mode`, mode, description));
  }
  if (mode === "full" && trained.length === 0 && base !== JOB_DEFAULTS.training.base) {
    const description =
      'keeps frozen weights, and in mode "full" none are; use mode "lora", or name the trained tensors';
    found.push(refused(`${at}.base`, base, description));
  }
  return found;
}

function completedTraining({ training }: JobManifest["spec"]): TrainingSpec {
  const { mode, lora, base, trained, recompute } = training;
  if (mode === "full") return { mode, lora: undefined, base, trained, recompute };
  const { rank = JOB_DEFAULTS.lora.rank, targets = [...JOB_DEFAULTS.lora.targets] } = lora ?? {};
  const { alpha = 2 * rank, rankStabilized = JOB_DEFAULTS.lora.rankStabilized } = lora ?? {};
  return { mode, lora: { rank, alpha, targets, rankStabilized }, base, trained, recompute };
}

function completedOptimizer({ local, strategy }: JobManifest["spec"]): OptimizerSpec {
  const { optimizer, steps } = local;
  const { schedule } = optimizer;
  const adamw = optimizer.name === "adamw";
  // Control variates are means of plain gradients.
  const isControlled = strategyFacts(strategy.name)?.controlled === true;
  const { beta1, beta2, eps } = adamw ? JOB_DEFAULTS.adamw : { beta1: 0, beta2: 0, eps: 0 };
  // Not tied to the number of rounds, which may be raised later without changing anything else.
  const warmupSteps = schedule.warmupSteps ?? Math.min(JOB_DEFAULTS.schedule.warmupSteps, steps);
  return {
    ...optimizer,
    beta1: optimizer.beta1 ?? beta1,
    beta2: optimizer.beta2 ?? beta2,
    eps: optimizer.eps ?? eps,
    momentum: optimizer.momentum ?? (adamw || isControlled ? 0 : JOB_DEFAULTS.sgd.momentum),
    schedule: { ...schedule, warmupSteps },
  };
}

function completedModel({ base, family, config, tokenizer }: JobManifest["spec"]["model"]): ModelSpec {
  if (base !== undefined) return ModelSpec.fromPartial({ base });
  return {
    base: "",
    family: family ?? JOB_DEFAULTS.model.family,
    config,
    tokenizer: {
      kind: tokenizer?.kind ?? JOB_DEFAULTS.tokenizer.kind,
      chars: tokenizer?.chars ?? "",
      blob: tokenizer?.blob,
    },
  };
}

/** Defaults that depend on other fields. */
function completed({ spec, ...manifest }: JobManifest, contextLength: number | undefined): TrainingJob {
  const { model, data, local } = spec;
  return TrainingJob.fromPartial({
    ...manifest,
    spec: {
      ...spec,
      model: completedModel(model),
      data: { ...data, seqLen: data.seqLen ?? Math.min(JOB_DEFAULTS.data.seqLen, contextLength ?? Infinity) },
      local: { ...local, optimizer: completedOptimizer(spec) },
      training: completedTraining(spec),
      strategy: completedStrategy(spec),
      codec: completedCodec(spec),
    },
  });
}

/**
 * What of a decoded job does not fit the model it is to start from: its sequences, the projections and tensors it names.
 * New models are held against it when the manifest is decoded, stored ones as soon as they are known.
 */
export function checkAgainstModel({ spec }: TrainingJob, facts: ModelFacts): Violation[] {
  const objections = spec?.training === undefined ? [] : facts.objections(spec.training);
  return [
    ...tooLong(spec?.data?.seqLen ?? 0, facts.contextLength),
    ...(objections.length > 0 ? [] : tooFewLayers(spec, facts)),
    ...objections.map(({ field, value, description }) => refused(`spec.training.${field}`, value, description)),
  ];
}

/**
 * A TrainingJob from a parsed YAML or JSON document, defaults filled in. Everything that is wrong is returned at once:
 * unknown fields, wrong types, numbers that cannot be, and fields that contradict one another.
 */
export function decodeTrainingJob(document: unknown, readModel: ReadModel): Decoded<TrainingJob> {
  const parsed = jobSchema.safeParse(document);
  if (!parsed.success) return { ok: false, violations: toViolations(jobSchema, document, parsed.error) };
  const { spec } = parsed.data;
  const { violations: ofModel, facts } = checkModel(spec.model, readModel);
  const job = completed(parsed.data, facts?.contextLength);
  const together = [...checkTogether(spec), ...checkTraining(spec), ...checkCombination(spec)];
  const violations = [...ofModel, ...together, ...(facts === undefined ? [] : checkAgainstModel(job, facts))];
  return violations.length > 0 ? { ok: false, violations } : { ok: true, value: job };
}

/** A Dataset from a parsed YAML or JSON document, defaults filled in. */
export function decodeDataset(document: unknown): Decoded<Dataset> {
  const parsed = datasetSchema.safeParse(document);
  if (!parsed.success) return { ok: false, violations: toViolations(datasetSchema, document, parsed.error) };
  return { ok: true, value: Dataset.fromPartial(parsed.data) };
}
