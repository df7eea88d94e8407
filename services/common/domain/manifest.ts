import { ModelSpec, TrainingJob, type TrainingJobSpec } from "#proto/shoal/v1/job.js";
import { Dataset } from "#proto/shoal/v1/model.js";
import { datasetSchema, JOB_DEFAULTS, type JobManifest, jobSchema } from "./job-schema.js";
import { API_VERSION, type Violation } from "./resources.js";
import { showValue, toViolations } from "./violation.js";

/** What the graph room says of a model's config. Passed in, since this room may not import that one. */
export type ModelReading =
  | { ok: true; vocabSize: number; contextLength: number }
  | { ok: false; violations: readonly { field: string; value: unknown; description: string }[] };

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
  /** Longest sequence; undefined if it is that of a stored model, checked at admission. */
  contextLength: number | undefined;
}

/** Either a stored model alone, or a new one that can be built. */
function checkModel(model: JobManifest["spec"]["model"], readModel: ReadModel): CheckedModel {
  if (model.base !== undefined) {
    const extra = (["family", "config", "tokenizer"] as const).filter((key) => model[key] !== undefined);
    const remedy = `comes with the base model "${model.base}"; leave it out, or leave base out for a new model`;
    return {
      violations: extra.map((key) => refused(`spec.model.${key}`, model[key], remedy)),
      contextLength: undefined,
    };
  }
  if (model.config === undefined) {
    const remedy = "is missing: give the configuration of a new model, or base for a stored one";
    return { violations: [refused("spec.model.config", undefined, remedy)], contextLength: undefined };
  }
  const reading = readModel(model.family ?? JOB_DEFAULTS.model.family, model.config);
  if (reading.ok) {
    return { violations: checkTokenizer(model.tokenizer, reading.vocabSize), contextLength: reading.contextLength };
  }
  const violations = reading.violations.map(({ field, value, description }) =>
    field === "family" || field === "model_type"
      ? refused("spec.model.family", model.family, description)
      : refused(["spec.model.config", field].filter((part) => part !== "").join("."), value, description),
  );
  return { violations, contextLength: undefined };
}

/** What single fields cannot know of one another. */
function checkTogether(
  { cohort, local, data, rounds }: JobManifest["spec"],
  contextLength: number | undefined,
): Violation[] {
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
  if (contextLength !== undefined && data.seqLen !== undefined && data.seqLen > contextLength) {
    refuse(
      "spec.data.seqLen",
      data.seqLen,
      `is above the model's context length (${contextLength}); lower it or enlarge the model`,
    );
  }
  const warmup = local.optimizer.schedule.warmupSteps;
  if (warmup !== undefined && warmup > rounds * local.steps) {
    const description = `is longer than the job (${rounds} rounds of ${local.steps} steps); lower it`;
    refuse("spec.local.optimizer.schedule.warmupSteps", warmup, description);
  }
  return found;
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
  const schedule = local.optimizer.schedule;
  // Not tied to the number of rounds, which may be raised later without changing anything else.
  const warmup = Math.min(JOB_DEFAULTS.schedule.warmupSteps, local.steps);
  return TrainingJob.fromPartial({
    ...manifest,
    spec: {
      ...spec,
      model: completedModel(model),
      data: { ...data, seqLen: data.seqLen ?? Math.min(JOB_DEFAULTS.data.seqLen, contextLength ?? Infinity) },
      local: {
        ...local,
        optimizer: { ...local.optimizer, schedule: { ...schedule, warmupSteps: schedule.warmupSteps ?? warmup } },
      },
    },
  });
}

/**
 * A TrainingJob from a parsed YAML or JSON document, defaults filled in. Everything that is wrong is returned at once:
 * unknown fields, wrong types, numbers that cannot be, and fields that contradict one another.
 */
export function decodeTrainingJob(document: unknown, readModel: ReadModel): Decoded<TrainingJob> {
  const parsed = jobSchema.safeParse(document);
  if (!parsed.success) return { ok: false, violations: toViolations(jobSchema, document, parsed.error) };
  const model = checkModel(parsed.data.spec.model, readModel);
  const violations = [...model.violations, ...checkTogether(parsed.data.spec, model.contextLength)];
  if (violations.length > 0) return { ok: false, violations };
  return { ok: true, value: completed(parsed.data, model.contextLength) };
}

/** A Dataset from a parsed YAML or JSON document, defaults filled in. */
export function decodeDataset(document: unknown): Decoded<Dataset> {
  const parsed = datasetSchema.safeParse(document);
  if (!parsed.success) return { ok: false, violations: toViolations(datasetSchema, document, parsed.error) };
  return { ok: true, value: Dataset.fromPartial(parsed.data) };
}

type Plain = Record<string, unknown>;

const isPlain = (value: unknown): value is Plain =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Maps whose entries are the user's, so that they are taken whole. */
const MAPS = new Set(["config", "selector"]);

/** A message without the fields that are at their zero: absent, as far as proto3 can tell. */
function withoutZeros(message: Plain): Plain {
  const kept = Object.entries(message).flatMap(([key, value]): [string, unknown][] => {
    if (value === undefined || value === 0 || value === "" || value === false) return [];
    if (!isPlain(value)) return [[key, value]];
    const inner = MAPS.has(key) ? value : withoutZeros(value);
    return Object.keys(inner).length === 0 ? [] : [[key, inner]];
  });
  return Object.fromEntries(kept);
}

/** `over`, and where it says nothing, `under`. */
function merge(under: Plain, over: Plain): Plain {
  const merged: Plain = { ...under };
  for (const [key, value] of Object.entries(over)) {
    const old = under[key];
    merged[key] = isPlain(value) && isPlain(old) && !MAPS.has(key) ? merge(old, value) : value;
  }
  return merged;
}

/** A stored spec as a manifest would say it: every field, but without messages and texts that are unset. */
function asManifest(message: Plain): Plain {
  const kept = Object.entries(message).filter(([, value]) => value !== undefined && value !== "");
  return Object.fromEntries(
    kept.map(([key, value]) => [key, isPlain(value) && !MAPS.has(key) ? asManifest(value) : value]),
  );
}

/**
 * The typed gRPC form under the same rules. Proto3 cannot tell zero from absent, so a zero means what the stored job
 * says, if there is one, and else the default; `suspended` alone is taken as it is. To set a field to zero use a manifest.
 */
export function completeTrainingJob(
  job: TrainingJob,
  readModel: ReadModel,
  stored?: TrainingJobSpec,
): Decoded<TrainingJob> {
  const given = withoutZeros({ ...job.spec });
  const spec = merge(stored === undefined ? {} : asManifest({ ...stored }), given);
  const { name = "", labels = {}, annotations = {} } = job.metadata ?? {};
  const document = {
    apiVersion: job.apiVersion === "" ? API_VERSION : job.apiVersion,
    kind: job.kind === "" ? "TrainingJob" : job.kind,
    metadata: { name, labels, annotations },
    spec: { ...spec, suspended: job.spec?.suspended ?? false },
  };
  return decodeTrainingJob(document, readModel);
}
