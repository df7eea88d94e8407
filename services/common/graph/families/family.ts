import type { Sequence } from "../attention.js";
import type { GraphBuilder, Shape, Value } from "../builder.js";
import type { Parameters } from "../projection.js";

/** What is wrong with one field of a model config, for a person to repair. */
export interface Violation {
  readonly field: string;
  readonly value: unknown;
  readonly description: string;
}

const SHOWN_LENGTH = 100;

/** A hostile name as it can be shown. */
export const shownName = (name: string): string =>
  name.length > SHOWN_LENGTH ? `${name.slice(0, SHOWN_LENGTH)}...` : name;

/** A hostile value as it can be shown: numbers, switches, short texts and lists of numbers, but nothing nested. */
export function shownValue(value: unknown): unknown {
  if (typeof value === "string") return shownName(value);
  if (typeof value !== "object" || value === null) return value;
  const flat = Array.isArray(value) && value.length <= SHOWN_LENGTH && value.every((item) => typeof item === "number");
  return flat ? value : undefined;
}

export type Parsed<C> =
  { readonly ok: true; readonly config: C } | { readonly ok: false; readonly violations: readonly Violation[] };

/** One weight tensor, by its Hugging Face name. */
export interface ParameterSpec {
  readonly name: string;
  readonly shape: Shape;
  /** Standard deviation of the first weights around `mean`; 0 for a constant. */
  readonly init: { readonly mean: number; readonly std: number };
}

/** A linear module, which an adapter can stand beside. */
export interface Projection {
  /** Its weight is `<module>.weight`. */
  readonly module: string;
  readonly from: number;
  readonly to: number;
  /** Whether the weight lies as [in, out] (GPT-2's Conv1D) instead of [out, in]. */
  readonly inOut: boolean;
}

export interface BatchShape {
  readonly batch: number;
  readonly seqLen: number;
}

/** A model family: everything that differs between architectures. Adding one is one file and one line in table.ts. */
export interface Family<C> {
  /** `model_type` in Hugging Face's config.json. */
  readonly modelType: string;
  /** Prefix that some published checkpoints drop from tensor names. */
  readonly prefix: string;
  /** Names of further tensors a checkpoint may hold that carry no weights of their own. */
  isRedundant(name: string): boolean;
  /** The tensor that a checkpoint may hold a second time under another name (tied weights), or undefined. */
  tiedTo(config: C, name: string): string | undefined;
  /** Reads our own field names. */
  parse(fields: Readonly<Record<string, unknown>>): Parsed<C>;
  /** Reads the fields of a Hugging Face config.json. */
  parseHuggingFace(fields: Readonly<Record<string, unknown>>): Parsed<C>;
  toHuggingFace(config: C): Record<string, unknown>;
  /** Every tensor in the order of Hugging Face's modules. */
  parameters(config: C): ParameterSpec[];
  /** The linear modules of the blocks, and of the head where it has a weight of its own. */
  projections(config: C): Projection[];
  /** Keys' and values' heads of a block and their size, for a cache. */
  cacheShape(config: C): { kvHeads: number; headSize: number };
  /** A sequence's tokens [b, t] -> hidden states [b*t, width] after the last norm. */
  hidden(g: GraphBuilder, config: C, parameters: Parameters, sequence: Sequence): Value;
  /** Hidden states [n, width] -> logits [n, vocab]. */
  logits(g: GraphBuilder, config: C, parameters: Parameters, hidden: Value): Value;
  /** Multiply-adds of one forward pass over the whole batch, in matrix products. */
  multiplyAdds(config: C, shape: BatchShape): number;
}
