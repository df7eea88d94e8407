import { type Parsed, shownValue, type Violation } from "./families/family.js";
import { families, familyOf, type ModelConfig } from "./families/table.js";

export type { ModelConfig } from "./families/table.js";
export type { Violation } from "./families/family.js";

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const refuse = ({ field, value, description }: Violation): Parsed<ModelConfig> => ({
  ok: false,
  violations: [{ field, value: shownValue(value), description }],
});

/**
 * Reads a model config in our form (`family`, camelCase) or in Hugging Face's (`model_type`, config.json).
 * What cannot be built is refused field by field, each with what to write instead.
 */
export function parseModelConfig(value: unknown): Parsed<ModelConfig> {
  if (!isRecord(value))
    return refuse({ field: "", value, description: "must be an object with the fields of a model" });
  const known = Object.values(families);
  if (value["family"] !== undefined) {
    const name = value["family"];
    const family = Object.entries(families).find(([key]) => key === name)?.[1];
    if (family !== undefined) return family.parse(value);
    return refuse({ field: "family", value: name, description: `must be one of ${Object.keys(families).join(", ")}` });
  }
  const modelType = value["model_type"];
  const family = known.find((candidate) => candidate.modelType === modelType);
  if (family !== undefined) return family.parseHuggingFace(value);
  if (modelType === undefined) {
    const description = `is missing: give one of ${Object.keys(families).join(", ")}, or a Hugging Face config with model_type`;
    return refuse({ field: "family", value: undefined, description });
  }
  const description = `must be one of ${known.map((candidate) => candidate.modelType).join(", ")}`;
  return refuse({ field: "model_type", value: modelType, description });
}

/** The config.json that Hugging Face's transformers reads for this model. */
export function toHuggingFaceConfig(config: ModelConfig): Record<string, unknown> {
  return familyOf(config).toHuggingFace(config);
}
