import type { ModelFacts, ReadModel } from "#common/domain/manifest.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Model } from "#proto/shoal/v1/model.js";
import type { Fragment } from "#proto/shoal/v1/round.js";
import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
import { countLayers, fragmentsOf } from "#common/graph/fragments.js";
import { variantOf } from "#common/graph/training.js";
import { resolveVariant, variantLayout } from "#common/graph/variant.js";

type Fields = Readonly<Record<string, unknown>>;

/** A config in the family's Hugging Face field names; the family may be named beside it or as model_type in it. */
export function readConfig(family: string, config: Fields): ReturnType<typeof parseModelConfig> {
  const inner = config["model_type"];
  if (inner !== undefined && inner !== family) {
    const description = `is not the family "${family}"; name the same in both, or leave model_type out`;
    return { ok: false, violations: [{ field: "model_type", value: inner, description }] };
  }
  return parseModelConfig({ ...config, model_type: family });
}

/** What manifests are held against. */
export function factsOf(config: ModelConfig): ModelFacts {
  const { vocabSize, contextLength } = config;
  return {
    vocabSize,
    contextLength,
    objections: (training) => {
      const resolved = resolveVariant(config, variantOf(training));
      return resolved.ok ? [] : resolved.violations;
    },
    trainedLayers: (training) => countLayers(variantLayout(config, variantOf(training)).trainable),
  };
}

/** The graph room's judgement, in the terms of the manifest's rules. */
export const readModel: ReadModel = (family, config) => {
  const parsed = readConfig(family, config);
  return parsed.ok ? { ok: true, ...factsOf(parsed.config) } : parsed;
};

/** The config of a stored model. Throws code "MODEL_INVALID" if it cannot be built, which admission rules out. */
export function configOf(model: Model): ModelConfig {
  const parsed = readConfig(model.family, model.config ?? {});
  if (parsed.ok) return parsed.config;
  const why = parsed.violations.map(({ field, description }) => `${field} ${description}`).join("; ");
  throw Object.assign(new Error(`model ${model.metadata?.name ?? ""} cannot be built: ${why}`), {
    code: "MODEL_INVALID",
  });
}

/** The fragments in which a job synchronises its model; none if every round synchronises all. Throws as `configOf` does. */
export function fragmentsFor({ spec }: TrainingJob, model: Model): Fragment[] {
  const count = spec?.strategy?.fragments ?? 0;
  if (count === 0) return [];
  const { trainable } = variantLayout(configOf(model), variantOf(spec?.training));
  return fragmentsOf(trainable, count).map((ranges) => ({ ranges }));
}
