import type { GraphBuilder, Value } from "./builder.js";
import type { ParameterSpec, Projection, Violation } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { layoutOf, type ParameterLayout } from "./layout.js";
import { inputPieces, unpackTensors } from "./parameters.js";
import type { Parameters } from "./projection.js";
import { blockOf, type QuantizedPlace } from "./quantize.js";

/** Low-rank adapters (LoRA, Hu et al. 2021) beside some of the linear modules. */
export interface LoraSpec {
  readonly rank: number;
  /** The product of the two matrices counts alpha / rank times. */
  readonly alpha: number;
  /** Modules by the end of their names ("q_proj"), or "all-linear" for all but the head. */
  readonly targets: readonly string[];
  /** alpha / sqrt(rank) instead (Kalajdzievski 2023). */
  readonly rankStabilized?: boolean;
}

/** What of a model is trained. Nothing set: all of it. */
export interface Variant {
  readonly lora?: LoraSpec;
  /** Keeps the frozen weights of the blocks' projections as integers (QLoRA, Dettmers et al. 2023). */
  readonly base?: "int8" | "int4";
  /** The base's own tensors to train: names, `*` for any part of one. Left out: all, or none beside adapters. */
  readonly trained?: readonly string[];
}

export interface AdapterPlace {
  readonly projection: Projection;
  readonly scale: number;
  /** Names of the two matrices, as PEFT writes them. */
  readonly a: string;
  readonly b: string;
}

/** Two flat vectors: what changes, for which alone there is optimizer state, and what does not. */
export interface VariantLayout {
  readonly trainable: ParameterLayout;
  readonly frozen: ParameterLayout;
  /** Frozen matrices that are kept as integers, in neither of the two. */
  readonly quantized: readonly QuantizedPlace[];
  /** First values of the trainable tensors, as of all parameters. */
  readonly specs: readonly ParameterSpec[];
  readonly adapters: readonly AdapterPlace[];
}

export type ResolvedVariant =
  | { readonly ok: true; readonly layout: VariantLayout }
  | { readonly ok: false; readonly violations: readonly Violation[] };

const MAX_RANK = 4096;
export const ALL_LINEAR = "all-linear";

/** PEFT's name of a module's matrix. */
const adapterName = (module: string, matrix: "A" | "B"): string => `base_model.model.${module}.lora_${matrix}.weight`;

const hits = (target: string, module: string): boolean =>
  target === ALL_LINEAR ? module !== "lm_head" : module === target || module.endsWith(`.${target}`);

function placeAdapters(projections: readonly Projection[], lora: LoraSpec): AdapterPlace[] {
  const scale = lora.alpha / (lora.rankStabilized === true ? Math.sqrt(lora.rank) : lora.rank);
  return projections
    .filter(({ module }) => lora.targets.some((target) => hits(target, module)))
    .map((projection) => {
      const { module } = projection;
      return { projection, scale, a: adapterName(module, "A"), b: adapterName(module, "B") };
    });
}

function judgeLora({ rank, alpha, targets }: LoraSpec, projections: readonly Projection[]): Violation[] {
  const violations: Violation[] = [];
  if (!Number.isInteger(rank) || rank < 1 || rank > MAX_RANK) {
    violations.push({ field: "lora.rank", value: rank, description: `must be a whole number from 1 to ${MAX_RANK}` });
  }
  if (!Number.isFinite(alpha) || alpha <= 0) {
    violations.push({ field: "lora.alpha", value: alpha, description: "must be a number above 0" });
  }
  for (const target of targets) {
    if (projections.some(({ module }) => hits(target, module))) continue;
    const known = [...new Set(projections.map(({ module }) => module.split(".").at(-1) ?? module))].join(", ");
    const description = `names no projection of this model; it has ${known}, or say ${ALL_LINEAR}`;
    violations.push({ field: "lora.targets", value: target, description });
  }
  if (targets.length === 0) {
    violations.push({ field: "lora.targets", value: targets, description: "must name at least one projection" });
  }
  return violations;
}

/** The frozen matrices of the blocks' projections, as far as their rows divide into blocks; the head stays as it is. */
function placeQuantized(
  projections: readonly Projection[],
  frozen: readonly ParameterSpec[],
  bits: 4 | 8,
): QuantizedPlace[] {
  const names = new Set(frozen.map(({ name }) => name));
  return projections.flatMap(({ module, from, to, inOut }) => {
    const [name, block] = [`${module}.weight`, blockOf(from)];
    if (module === "lm_head" || block === undefined || !names.has(name)) return [];
    return [{ name, rows: to, columns: from, bits, block, transposed: inOut }];
  });
}

/** Whether a name is the pattern's parts in their order, with anything for `*`. Linear: patterns come from manifests. */
function matches(pattern: string, name: string): boolean {
  const [head = "", ...rest] = pattern.split("*");
  const tail = rest.pop();
  if (tail === undefined) return name === head;
  if (!name.startsWith(head)) return false;
  let at = head.length;
  for (const part of rest) {
    const found = name.indexOf(part, at);
    if (found < 0) return false;
    at = found + part.length;
  }
  return name.length - tail.length >= at && name.endsWith(tail);
}

/** PEFT's first values: A uniform with the variance of Kaiming's rule for a = sqrt 5, B zero; here A is normal. */
function adapterSpecs({ projection, a, b }: AdapterPlace, rank: number): ParameterSpec[] {
  const { from, to } = projection;
  return [
    { name: a, shape: [rank, from], init: { mean: 0, std: 1 / Math.sqrt(3 * from) } },
    { name: b, shape: [to, rank], init: { mean: 0, std: 0 } },
  ];
}

/** Sorts a model's tensors and its adapters' into trainable and frozen; says what of the variant does not fit it. */
export function resolveVariant(config: ModelConfig, variant: Variant): ResolvedVariant {
  const family = familyOf(config);
  const projections = family.projections(config);
  const base = family.parameters(config);
  const { lora } = variant;
  const violations = lora === undefined ? [] : judgeLora(lora, projections);
  const patterns = variant.trained ?? (lora === undefined ? ["*"] : []);
  for (const pattern of patterns) {
    if (base.some(({ name }) => matches(pattern, name))) continue;
    violations.push({ field: "trained", value: pattern, description: "matches no tensor of this model" });
  }
  if (lora === undefined && patterns.length === 0) {
    violations.push({ field: "trained", value: patterns, description: "leaves nothing to train" });
  }
  if (violations.length > 0) return { ok: false, violations };
  const adapters = lora === undefined ? [] : placeAdapters(projections, lora);
  const trained = base.filter(({ name }) => patterns.some((pattern) => matches(pattern, name)));
  const specs = [...adapters.flatMap((place) => adapterSpecs(place, lora?.rank ?? 0)), ...trained];
  const rest = base.filter((spec) => !trained.includes(spec));
  const quantized =
    variant.base === undefined ? [] : placeQuantized(projections, rest, variant.base === "int8" ? 8 : 4);
  const names = new Set(quantized.map(({ name }) => name));
  const frozen = layoutOf(rest.filter(({ name }) => !names.has(name)));
  return { ok: true, layout: { trainable: layoutOf(specs), frozen, quantized, specs, adapters } };
}

/** The layout of a variant that has been found to fit; throws a RangeError for one that does not. */
export function variantLayout(config: ModelConfig, variant: Variant = {}): VariantLayout {
  const resolved = resolveVariant(config, variant);
  if (resolved.ok) return resolved.layout;
  throw new RangeError(resolved.violations.map(({ field, description }) => `${field} ${description}`).join("; "));
}

export interface BoundModel {
  readonly parameters: Parameters;
  /** The trainable vector as the graph's inputs `weights.i`. */
  readonly pieces: readonly Value[];
  /** The trainable tensors by name. */
  readonly tensors: ReadonlyMap<string, Value>;
}

/**
 * Declares a variant's tensors as inputs: `weights.i` of the trainable vector, `frozen.i` of the frozen one, and for
 * quantised matrices `packed.i` and `scales.i`.
 */
export function bindVariant(g: GraphBuilder, layout: VariantLayout): BoundModel {
  const pieces = inputPieces(g, layout.trainable, "weights");
  const tensors = unpackTensors(g, layout.trainable, pieces);
  const frozen = unpackTensors(g, layout.frozen, inputPieces(g, layout.frozen, "frozen"));
  const places = new Map(layout.adapters.map((place) => [place.projection.module, place]));
  const quantized = new Map(
    layout.quantized.map((place, i) => {
      const { rows, columns, bits, block } = place;
      const packed = g.input(`packed.${i}`, "uint8", [rows, columns / block, (block * bits) / 8]);
      const scales = g.input(`scales.${i}`, "float32", [(rows * columns) / block]);
      return [place.name, { rows, columns, bits, block, packed, scales }] as const;
    }),
  );
  const find = (name: string): Value | undefined => tensors.get(name) ?? frozen.get(name);
  const has = (name: string): boolean => find(name) !== undefined;
  const tensor = (name: string): Value => {
    const value = find(name);
    if (value === undefined) throw new Error(`no tensor ${name}`);
    return value;
  };
  const adapter = (module: string): ReturnType<Parameters["adapter"]> => {
    const place = places.get(module);
    return place && { a: tensor(place.a), b: tensor(place.b), scale: place.scale };
  };
  return { pieces, tensors, parameters: { tensor, quantized: (name) => quantized.get(name), has, adapter } };
}
