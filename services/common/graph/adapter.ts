import type { ModelConfig, Violation } from "./config.js";
import { decodeWeights, encodeWeights, isWeightType } from "./dtypes.js";
import { FieldReader } from "./families/fields.js";
import { parameterLayout, selectTensors } from "./layout.js";
import { joinSafetensors, type NamedTensor, readSafetensors, writeSafetensors } from "./safetensors.js";
import { ALL_LINEAR, type LoraSpec, resolveVariant, variantLayout } from "./variant.js";

/** The files of an adapter as the peft library keeps them. */
export interface AdapterFiles {
  readonly "adapter_config.json": Uint8Array;
  readonly "adapter_model.safetensors": Uint8Array;
}

/** What of imported files the flat vector does not hold: the config and the order, types and metadata of the tensors. */
export interface AdapterTemplate {
  readonly config: Uint8Array;
  readonly header: Uint8Array;
  /** Names and types in the order of their bytes. */
  readonly tensors: readonly { readonly name: string; readonly dtype: string }[];
}

export type ImportedAdapter =
  | {
      readonly ok: true;
      readonly lora: LoraSpec;
      /** Flat, in the order of `variantLayout(config, {lora}).trainable`. */
      readonly weights: Float32Array;
      readonly template: AdapterTemplate;
    }
  | { readonly ok: false; readonly violations: readonly Violation[] };

/** Fields of adapter_config.json that do not change what is computed; dropout is training's affair and not applied. */
const NEUTRAL = new Set([
  "task_type",
  "base_model_name_or_path",
  "revision",
  "inference_mode",
  "auto_mapping",
  "peft_version",
  "parent_library",
  "lora_dropout",
  "fan_in_fan_out",
  "init_lora_weights",
  "megatron_core",
  "megatron_config",
  "qalora_group_size",
  "runtime_config",
]);

type ParsedLora = { ok: true; lora: LoraSpec } | { ok: false; violations: readonly Violation[] };

function parseAdapterConfig(bytes: Uint8Array): ParsedLora {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    json = undefined;
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    const description = "is not a JSON object";
    return { ok: false, violations: [{ field: "adapter_config.json", value: undefined, description }] };
  }
  const source = json as Readonly<Record<string, unknown>>;
  const fields = new FieldReader(source);
  if (source["peft_type"] !== "LORA") fields.refuse("peft_type", 'only "LORA" is supported');
  fields.skip("peft_type", "target_modules");
  fields.only("bias", ["none"], 'only "none" is supported');
  const rank = fields.size("r", { max: 4096, remedy: "the rank of the adapters" });
  const alpha = fields.numberBetween("lora_alpha", 0, 1e9, 8);
  const rankStabilized = fields.flag("use_rslora", false);
  const modules = source["target_modules"];
  const listed = typeof modules === "string" ? [modules] : modules;
  if (!Array.isArray(listed) || !listed.every((name): name is string => typeof name === "string")) {
    fields.refuse("target_modules", "must be a list of module names");
  } else if (typeof modules === "string" && modules !== ALL_LINEAR) {
    fields.refuse("target_modules", `must be a list of module names or "${ALL_LINEAR}": patterns are not supported`);
  }
  fields.refuseUnread((name) => NEUTRAL.has(name));
  if (fields.violations.length > 0) return { ok: false, violations: fields.violations };
  const targets = listed as string[];
  return { ok: true, lora: rankStabilized ? { rank, alpha, targets, rankStabilized } : { rank, alpha, targets } };
}

/** Reads an adapter for a model; a tensor that is missing, foreign, misshapen or not finite is named. */
export function importAdapter(config: ModelConfig, files: AdapterFiles): ImportedAdapter {
  const parsed = parseAdapterConfig(files["adapter_config.json"]);
  if (!parsed.ok) return parsed;
  const { lora } = parsed;
  const resolved = resolveVariant(config, { lora });
  if (!resolved.ok) return resolved;
  const read = readSafetensors(files["adapter_model.safetensors"]);
  if (!read.ok) {
    return {
      ok: false,
      violations: [{ field: "adapter_model.safetensors", value: undefined, description: read.reason }],
    };
  }
  const { entries, body, header } = read.file;
  const layout = resolved.layout.trainable;
  const violations: Violation[] = [];
  const weights = new Float32Array(layout.total);
  const missing = new Map(layout.tensors.map((place) => [place.name, place]));
  for (const { name, dtype, shape, begin, end } of entries) {
    const wrong = (value: unknown, description: string): unknown =>
      violations.push({ field: name, value, description });
    const place = missing.get(name);
    missing.delete(name);
    if (place === undefined) wrong(shape, "is not a tensor of this adapter");
    else if (!isWeightType(dtype)) wrong(dtype, "must be F32, F16 or BF16");
    else if (shape.join() !== place.shape.join()) wrong(shape, `must have the shape [${place.shape.join(",")}]`);
    else {
      const values = decodeWeights(dtype, body.subarray(begin, end));
      const bad = values.findIndex((x) => !Number.isFinite(x));
      if (bad >= 0) wrong(values[bad], `holds a value that is not finite, at position ${bad}`);
      weights.set(values, place.offset);
    }
  }
  for (const { name, shape } of missing.values()) {
    const description = `is missing: a tensor of shape [${shape.join(",")}] is needed`;
    violations.push({ field: name, value: undefined, description });
  }
  if (violations.length > 0) return { ok: false, violations };
  const tensors = [...entries].sort((a, b) => a.begin - b.begin || a.end - b.end);
  return {
    ok: true,
    lora,
    weights,
    template: { config: files["adapter_config.json"], header: header.slice(), tensors },
  };
}

function adapterConfig({ rank, alpha, targets, rankStabilized = false }: LoraSpec, inOut: boolean): unknown {
  return {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    r: rank,
    lora_alpha: alpha,
    target_modules: targets.includes(ALL_LINEAR) ? ALL_LINEAR : targets,
    lora_dropout: 0,
    bias: "none",
    fan_in_fan_out: inOut,
    use_rslora: rankStabilized,
  };
}

/**
 * An adapter's files, which peft loads. With the template of an import, in its form: untouched weights give the same bytes.
 * @param weights flat, in the order of `variantLayout(config, {lora}).trainable`
 */
export function exportAdapter(
  config: ModelConfig,
  lora: LoraSpec,
  weights: Float32Array,
  template?: AdapterTemplate,
): AdapterFiles {
  const { trainable, adapters } = variantLayout(config, { lora });
  if (weights.length !== trainable.total) throw new RangeError(`${weights.length} weights for ${trainable.total}`);
  const places = new Map(trainable.tensors.map((place) => [place.name, place]));
  const valuesOf = (name: string): Float32Array => {
    const place = places.get(name);
    if (place === undefined) throw new RangeError(`no tensor ${name}`);
    return weights.subarray(place.offset, place.offset + place.size);
  };
  if (template !== undefined) {
    const parts = template.tensors.map(({ name, dtype }) => {
      if (!isWeightType(dtype)) throw new RangeError(`tensor ${name} of ${dtype}`);
      return encodeWeights(dtype, valuesOf(name));
    });
    return {
      "adapter_config.json": template.config,
      "adapter_model.safetensors": joinSafetensors(template.header, parts),
    };
  }
  const tensors = new Map<string, NamedTensor>();
  for (const { name, shape } of trainable.tensors) tensors.set(name, { shape, data: valuesOf(name) });
  const json = adapterConfig(lora, adapters[0]?.projection.inOut ?? false);
  return {
    "adapter_config.json": new TextEncoder().encode(`${JSON.stringify(json, null, 2)}\n`),
    "adapter_model.safetensors": writeSafetensors(tensors, { format: "pt" }),
  };
}

/** The base's weights with the adapter folded in, W + s B A, as one flat vector in the order of `parameterLayout`. */
export function mergeAdapter(
  config: ModelConfig,
  base: Float32Array,
  lora: LoraSpec,
  adapter: Float32Array,
): Float32Array {
  const { trainable, adapters } = variantLayout(config, { lora });
  const layout = parameterLayout(config);
  const merged = selectTensors(layout, base, layout);
  const slice = (flat: Float32Array, tensors: typeof layout, name: string): Float32Array => {
    const place = tensors.tensors.find((candidate) => candidate.name === name);
    if (place === undefined) throw new RangeError(`no tensor ${name}`);
    return flat.subarray(place.offset, place.offset + place.size);
  };
  for (const { projection, scale, a, b } of adapters) {
    const { module, from, to, inOut } = projection;
    const weight = slice(merged, layout, `${module}.weight`);
    const [down, up] = [slice(adapter, trainable, a), slice(adapter, trainable, b)];
    const row = new Float64Array(from);
    for (let out = 0; out < to; out++) {
      row.fill(0);
      for (let r = 0; r < lora.rank; r++) {
        const factor = scale * (up[out * lora.rank + r] as number);
        for (let i = 0; i < from; i++) row[i] = (row[i] as number) + factor * (down[r * from + i] as number);
      }
      for (let i = 0; i < from; i++) {
        const place = inOut ? i * to + out : out * from + i;
        weight[place] = (weight[place] as number) + (row[i] as number);
      }
    }
  }
  return merged;
}
