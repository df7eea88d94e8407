import { cachedSequence, causalSequence } from "./attention.js";
import { GraphBuilder, type Value } from "./builder.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { gather } from "./ops.js";
import { bindVariant, type Variant, variantLayout } from "./variant.js";

export interface LogitsGraphOptions {
  readonly seqLen: number;
  readonly variant?: Variant;
}

/**
 * Next-token logits as an ONNX model. Inputs: tokens int64 [1,t]; position int64 [1], whose logits are wanted (what
 * stands after it does not matter); the pieces weights.i and frozen.i. Output: logits float32 [1, vocab].
 */
export function buildLogitsGraph(config: ModelConfig, { seqLen, variant }: LogitsGraphOptions): Uint8Array {
  const g = new GraphBuilder();
  const family = familyOf(config);
  const tokens = g.input("tokens", "int64", [1, seqLen]);
  const position = g.input("position", "int64", [1]);
  const { parameters } = bindVariant(g, variantLayout(config, variant));
  const hidden = gather(g, family.hidden(g, config, parameters, causalSequence(g, tokens)), position);
  g.output("logits", family.logits(g, config, parameters, hidden));
  return g.encode();
}

export interface DecodeGraphOptions {
  /** Places for keys and values: the longest sequence that can be generated. */
  readonly capacity: number;
  /** Tokens taken at once; 1 by default. A longer chunk reads a prompt faster. */
  readonly chunk?: number;
  readonly variant?: Variant;
}

/**
 * Next-token logits with a cache of keys and values (Pope et al. 2022): only new tokens are computed. The cache lies
 * outside and is only read; the runtime puts the new keys and values behind the filled places.
 * Inputs: tokens int64 [1,n]; filled int64 [1], places filled before; position int64 [1], the token of the chunk whose
 * logits are wanted; past_k.l and past_v.l [kvHeads, capacity, d] for each block l; the pieces weights.i and frozen.i.
 * Outputs: logits [1, vocab]; new_k.l and new_v.l [kvHeads, n, d].
 */
export function buildDecodeGraph(config: ModelConfig, options: DecodeGraphOptions): Uint8Array {
  const { capacity, chunk = 1, variant } = options;
  if (capacity > config.contextLength) {
    throw new RangeError(`a cache of ${capacity} tokens for a context of ${config.contextLength}`);
  }
  const g = new GraphBuilder();
  const family = familyOf(config);
  const tokens = g.input("tokens", "int64", [1, chunk]);
  const filled = g.input("filled", "int64", [1]);
  const position = g.input("position", "int64", [1]);
  const { parameters } = bindVariant(g, variantLayout(config, variant));
  const past = (layer: number, shape: readonly [number, number, number]): { k: Value; v: Value } => ({
    k: g.input(`past_k.${layer}`, "float32", shape),
    v: g.input(`past_v.${layer}`, "float32", shape),
  });
  const store = (layer: number, k: Value, v: Value): void => {
    g.output(`new_k.${layer}`, k);
    g.output(`new_v.${layer}`, v);
  };
  const sequence = cachedSequence(g, tokens, { filled, capacity, past, store });
  const hidden = gather(g, family.hidden(g, config, parameters, sequence), position);
  g.output("logits", family.logits(g, config, parameters, hidden));
  return g.encode();
}
