import { GraphBuilder } from "./builder.js";
import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { parameterLayout } from "./layout.js";
import { crossEntropy } from "./loss.js";
import { inputPieces, unpackTensors } from "./parameters.js";

/**
 * Held-out loss as an ONNX model. Inputs: tokens, targets int64 [b,t] (-100 is masked), the pieces weights.i.
 * Outputs: loss_sum [] in nats and token_count [], both float32, so that batches can be summed exactly.
 */
export function buildEvalGraph(config: ModelConfig, { batch, seqLen }: BatchShape): Uint8Array {
  const g = new GraphBuilder();
  const family = familyOf(config);
  const layout = parameterLayout(config);
  const tokens = g.input("tokens", "int64", [batch, seqLen]);
  const targets = g.input("targets", "int64", [batch, seqLen]);
  const parameters = unpackTensors(g, layout, inputPieces(g, layout, "weights"));
  const logits = family.logits(g, config, parameters, family.hidden(g, config, parameters, tokens));
  const { lossSum, count } = crossEntropy(g, logits, targets);
  g.output("loss_sum", lossSum);
  g.output("token_count", count);
  return g.encode();
}
