import { rowSequence } from "./attention.js";
import { GraphBuilder } from "./builder.js";
import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { crossEntropy } from "./loss.js";
import { inputBatch } from "./learning.js";
import { bindVariant, type Variant, variantLayout } from "./variant.js";

export interface EvalGraphOptions extends BatchShape {
  /** As in training: the same two vectors go in. */
  readonly variant?: Variant;
  readonly packed?: boolean;
}

/**
 * Held-out loss as an ONNX model. Inputs: tokens, targets int64 [b,t] (-100 is masked), segments where packed, the pieces
 * weights.i and frozen.i. Outputs: loss_sum [] in nats and token_count [], both float32, so that batches can be summed
 * exactly.
 */
export function buildEvalGraph(config: ModelConfig, options: EvalGraphOptions): Uint8Array {
  const g = new GraphBuilder();
  const family = familyOf(config);
  const { tokens, targets, segments } = inputBatch(g, options, options.packed === true);
  const sequence = rowSequence(g, tokens, segments);
  const { parameters } = bindVariant(g, variantLayout(config, options.variant));
  const logits = family.logits(g, config, parameters, family.hidden(g, config, parameters, sequence));
  const { lossSum, count } = crossEntropy(g, logits, targets);
  g.output("loss_sum", lossSum);
  g.output("token_count", count);
  return g.encode();
}
