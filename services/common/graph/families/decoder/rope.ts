import type { FieldReader } from "../fields.js";

/** How the frequencies of a rotary embedding (Su et al. 2021) are stretched to contexts beyond those trained on. */
export type RopeScaling =
  | { readonly kind: "default" }
  /** Positions divided by the factor (Chen et al. 2023). */
  | { readonly kind: "linear"; readonly factor: number }
  /** "Dynamic NTK": a larger base for sequences beyond the context, none within it. */
  | { readonly kind: "dynamic"; readonly factor: number }
  /** Llama 3.1: low frequencies divided by the factor, high ones kept, those between interpolated. */
  | {
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalContext: number;
    }
  /** YaRN (Peng et al. 2023): interpolation by parts, and attention scaled by a factor. */
  | {
      readonly kind: "yarn";
      readonly factor: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly originalContext: number;
      readonly attentionFactor: number;
      readonly truncate: boolean;
    };

export interface Rope {
  readonly theta: number;
  readonly scaling: RopeScaling;
}

const LARGEST = 1e9;
const NAMES: Readonly<Record<string, string>> = {
  lowFrequencyFactor: "low_freq_factor",
  highFrequencyFactor: "high_freq_factor",
  originalContext: "original_max_position_embeddings",
  betaFast: "beta_fast",
  betaSlow: "beta_slow",
  attentionFactor: "attention_factor",
};
const KINDS = ["default", "linear", "dynamic", "llama3", "yarn"];
const KNOWN: Readonly<Record<RopeScaling["kind"], readonly string[]>> = {
  default: [],
  linear: ["factor"],
  dynamic: ["factor", "original_max_position_embeddings"],
  llama3: ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
  yarn: [
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
  ],
};

/** YaRN's recommended attention factor, 0.1 m ln(s) + 1. */
const yarnScale = (factor: number, m: number): number => (factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1);

function readYarn(fields: FieldReader, factor: number, contextLength: number): RopeScaling {
  const m = fields.numberBetween("mscale", -LARGEST, LARGEST, 0);
  const mAll = fields.numberBetween("mscale_all_dim", -LARGEST, LARGEST, 0);
  const usual = m !== 0 && mAll !== 0 ? yarnScale(factor, m) / yarnScale(factor, mAll) : yarnScale(factor, 1);
  return {
    kind: "yarn",
    factor,
    betaFast: fields.numberBetween("beta_fast", 0, LARGEST, 32),
    betaSlow: fields.numberBetween("beta_slow", 0, LARGEST, 1),
    originalContext: fields.numberBetween("original_max_position_embeddings", 0, LARGEST, contextLength),
    attentionFactor: fields.numberBetween("attention_factor", 0, LARGEST, usual),
    truncate: fields.flag("truncate", true),
  };
}

/**
 * Reads the scaling in Hugging Face's terms: `rope_type` (or `type`, as older files say) and its parameters.
 * @param contextLength stands in for the original context where YaRN's is not given
 */
export function readScaling(fields: FieldReader, contextLength: number): RopeScaling {
  const kind = fields.oneOf(fields.has("rope_type") ? "rope_type" : "type", KINDS, "default");
  fields.onlyFields(["rope_type", "type", "rope_theta", ...KNOWN[kind as RopeScaling["kind"]]]);
  const needed = (name: string): number => fields.numberBetween(name, 0, LARGEST);
  switch (kind) {
    case "linear":
    case "dynamic":
      return { kind, factor: needed("factor") };
    case "llama3": {
      const [lowFrequencyFactor, highFrequencyFactor] = [needed("low_freq_factor"), needed("high_freq_factor")];
      if (highFrequencyFactor <= lowFrequencyFactor) fields.refuse("high_freq_factor", "must be above low_freq_factor");
      const originalContext = needed("original_max_position_embeddings");
      return { kind, factor: needed("factor"), lowFrequencyFactor, highFrequencyFactor, originalContext };
    }
    case "yarn":
      return readYarn(fields, needed("factor"), contextLength);
    default:
      return { kind: "default" };
  }
}

/** The way back: `rope_scaling` of a config.json. */
export function writeScaling({ kind, ...rest }: RopeScaling): Record<string, unknown> | null {
  if (kind === "default") return null;
  const parameters = Object.entries(rest).map(([name, value]) => [NAMES[name] ?? name, value] as const);
  return { rope_type: kind, ...Object.fromEntries(parameters) };
}

function llama3(frequency: number, scaling: Extract<RopeScaling, { kind: "llama3" }>): number {
  const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalContext } = scaling;
  const turns = (originalContext * frequency) / (2 * Math.PI);
  if (turns < low) return frequency / factor;
  if (turns > high) return frequency;
  const smooth = (turns - low) / (high - low);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}

/** Shares of the frequencies that YaRN keeps: 1 for the high ones, 0 for the low ones, a ramp between. */
function yarnKept(size: number, theta: number, scaling: Extract<RopeScaling, { kind: "yarn" }>): number[] {
  const { betaFast, betaSlow, originalContext, truncate } = scaling;
  const bound = (turns: number): number =>
    (size * Math.log(originalContext / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [fast, slow] = [bound(betaFast), bound(betaSlow)];
  const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
  const high = Math.min(truncate ? Math.ceil(slow) : slow, size - 1);
  const width = low === high ? 0.001 : high - low;
  return Array.from({ length: size / 2 }, (_, i) => 1 - Math.min(1, Math.max(0, (i - low) / width)));
}

/**
 * Angles' frequencies [size / 2] of heads of `size`, and the factor on their cosines and sines.
 * @param length longest sequence of the graph: "dynamic" depends on it, and is plain up to the context's length
 */
export function ropeFrequencies(
  { theta, scaling }: Rope,
  size: number,
  contextLength: number,
  length: number,
): { frequencies: number[]; magnitude: number } {
  const plain = (base: number): number[] => Array.from({ length: size / 2 }, (_, i) => base ** ((-2 * i) / size));
  const frequencies = plain(theta);
  switch (scaling.kind) {
    case "default":
      return { frequencies, magnitude: 1 };
    case "linear":
      return { frequencies: frequencies.map((f) => f / scaling.factor), magnitude: 1 };
    case "dynamic": {
      const stretch = (scaling.factor * Math.max(length, contextLength)) / contextLength - (scaling.factor - 1);
      return { frequencies: size === 2 ? frequencies : plain(theta * stretch ** (size / (size - 2))), magnitude: 1 };
    }
    case "llama3":
      return { frequencies: frequencies.map((f) => llama3(f, scaling)), magnitude: 1 };
    case "yarn": {
      const kept = yarnKept(size, theta, scaling);
      const mixed = frequencies.map((f, i) => (f / scaling.factor) * (1 - (kept[i] ?? 0)) + f * (kept[i] ?? 0));
      return { frequencies: mixed, magnitude: scaling.attentionFactor };
    }
  }
}

/** Cosines and sines, row by row [reach, size / 2], of positions from 0. */
export function rotaryValues(
  rope: Rope,
  size: number,
  contextLength: number,
  length: number,
  reach = length,
): { cos: number[]; sin: number[] } {
  const { frequencies, magnitude } = ropeFrequencies(rope, size, contextLength, length);
  const angles = Array.from({ length: reach }, (_, position) => frequencies.map((f) => position * f)).flat();
  return {
    cos: angles.map((angle) => magnitude * Math.cos(angle)),
    sin: angles.map((angle) => magnitude * Math.sin(angle)),
  };
}
