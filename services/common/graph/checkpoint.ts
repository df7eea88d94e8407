import { toHuggingFaceConfig, type ModelConfig, type Violation } from "./config.js";
import { familyOf } from "./families/table.js";
import { importFolder, WEIGHTS_FILE } from "./folder.js";
import { parameterLayout } from "./layout.js";
import { type NamedTensor, writeSafetensors } from "./safetensors.js";

export interface CheckpointFiles {
  readonly "config.json": Uint8Array;
  readonly "model.safetensors": Uint8Array;
}

export type ImportedCheckpoint =
  | { readonly ok: true; readonly config: ModelConfig; readonly weights: Float32Array }
  | { readonly ok: false; readonly violations: readonly Violation[] };

/**
 * The files of a folder that Hugging Face's transformers loads with `from_pretrained`, in our own form: one file of
 * float32. `exportFolder` writes the form of an imported folder.
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

/** Reads a folder of config.json and one model.safetensors; see `importFolder`. */
export function importCheckpoint(configJson: Uint8Array | string, safetensors: Uint8Array): ImportedCheckpoint {
  const config = typeof configJson === "string" ? new TextEncoder().encode(configJson) : configJson;
  const imported = importFolder(
    new Map([
      ["config.json", config],
      [WEIGHTS_FILE, safetensors],
    ]),
  );
  return imported.ok ? { ok: true, config: imported.config, weights: imported.weights } : imported;
}
