import { parseModelConfig, toHuggingFaceConfig, type ModelConfig, type Violation } from "./config.js";
import { familyOf } from "./families/table.js";
import type { Family } from "./families/family.js";
import { parameterLayout } from "./layout.js";
import { type NamedTensor, parseSafetensors, writeSafetensors } from "./safetensors.js";

export interface CheckpointFiles {
  readonly "config.json": Uint8Array;
  readonly "model.safetensors": Uint8Array;
}

export type ImportedCheckpoint =
  | { readonly ok: true; readonly config: ModelConfig; readonly weights: Float32Array }
  | { readonly ok: false; readonly violations: readonly Violation[] };

/**
 * The files of a folder that Hugging Face's transformers loads with `from_pretrained`.
 * @param weights flat [total] in the order of `parameterLayout`
 */
export function exportCheckpoint(config: ModelConfig, weights: Float32Array): CheckpointFiles {
  const layout = parameterLayout(config);
  if (weights.length !== layout.total) throw new RangeError(`${weights.length} weights for ${layout.total} parameters`);
  const places = new Map(layout.tensors.map((place) => [place.name, place]));
  const tensors = new Map<string, NamedTensor>();
  for (const { name, shape } of familyOf(config).parameters(config)) {
    const place = places.get(name);
    if (place === undefined) throw new Error(`no place for ${name}`);
    tensors.set(name, { shape, data: weights.subarray(place.offset, place.offset + place.size) });
  }
  return {
    "config.json": new TextEncoder().encode(`${JSON.stringify(toHuggingFaceConfig(config), null, 2)}\n`),
    "model.safetensors": writeSafetensors(tensors, { format: "pt" }),
  };
}

const refuse = (...violations: Violation[]): ImportedCheckpoint => ({ ok: false, violations });

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

const sameValues = (a: Float32Array, b: Float32Array): boolean =>
  a.length === b.length && a.every((x, i) => x === b[i]);

/** Finds each tensor under its full name or without the family's prefix; says what is left over. */
function matchTensors(
  family: Family<ModelConfig>,
  tensors: ReadonlyMap<string, NamedTensor>,
  names: readonly string[],
): { found: Map<string, NamedTensor>; violations: Violation[] } {
  const found = new Map<string, NamedTensor>();
  const violations: Violation[] = [];
  const tied: [string, NamedTensor, string][] = [];
  for (const [name, tensor] of tensors) {
    const full = names.includes(name) ? name : `${family.prefix}${name}`;
    const original = family.tiedTo(name);
    const refuseTensor = (description: string): unknown =>
      violations.push({ field: name, value: tensor.shape, description });
    if (original !== undefined) tied.push([name, tensor, original]);
    else if (family.isRedundant(name)) continue;
    else if (!names.includes(full)) refuseTensor("is not a tensor of this model");
    else if (found.has(full)) refuseTensor("is there twice, with and without its prefix");
    else found.set(full, tensor);
  }
  for (const [name, tensor, original] of tied) {
    const other = found.get(original);
    if (other !== undefined && !sameValues(tensor.data, other.data)) {
      violations.push({ field: name, value: tensor.shape, description: `must equal ${original}: the head is tied` });
    }
  }
  return { found, violations };
}

/**
 * Reads a Hugging Face folder's config.json and model.safetensors (F32, F16 or BF16; names with and without
 * `transformer.`). A tensor that is missing, foreign, of another shape or not finite is named in the violations.
 */
export function importCheckpoint(configJson: Uint8Array | string, safetensors: Uint8Array): ImportedCheckpoint {
  const text = typeof configJson === "string" ? configJson : new TextDecoder().decode(configJson);
  const json = parseJson(text);
  if (json === undefined) return refuse({ field: "config.json", value: undefined, description: "is not JSON" });
  const parsed = parseModelConfig(json);
  if (!parsed.ok) return parsed;
  const file = parseSafetensors(safetensors);
  if (!file.ok) return refuse({ field: "model.safetensors", value: undefined, description: file.reason });

  const layout = parameterLayout(parsed.config);
  const names = layout.tensors.map((place) => place.name);
  const { found, violations } = matchTensors(familyOf(parsed.config), file.tensors, names);
  for (const place of layout.tensors) {
    const tensor = found.get(place.name);
    const wanted = `[${place.shape.join(",")}]`;
    const wrong = (value: unknown, description: string): unknown =>
      violations.push({ field: place.name, value, description });
    if (tensor === undefined) wrong(undefined, `is missing: a tensor of shape ${wanted} is needed`);
    else if (tensor.shape.join() !== place.shape.join()) wrong(tensor.shape, `must have the shape ${wanted}`);
    else {
      const bad = tensor.data.findIndex((x) => !Number.isFinite(x));
      if (bad >= 0) wrong(tensor.data[bad], `holds a value that is not finite, at position ${bad}`);
    }
  }
  if (violations.length > 0) return { ok: false, violations };
  // Only now: a config may claim a size that its file does not have.
  const weights = new Float32Array(layout.total);
  for (const place of layout.tensors) weights.set(found.get(place.name)?.data ?? [], place.offset);
  return { ok: true, config: parsed.config, weights };
}
