import { GraphBuilder } from "./builder.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { parameterLayout } from "./layout.js";
import { gather } from "./ops.js";
import { inputPieces, unpackTensors } from "./parameters.js";

/**
 * Next-token logits as an ONNX model. Inputs: tokens int64 [1,t]; position int64 [1], whose logits are wanted (what
 * stands after it does not matter); the pieces weights.i. Output: logits float32 [1, vocab].
 */
export function buildLogitsGraph(config: ModelConfig, { seqLen }: { readonly seqLen: number }): Uint8Array {
  const g = new GraphBuilder();
  const family = familyOf(config);
  const layout = parameterLayout(config);
  const tokens = g.input("tokens", "int64", [1, seqLen]);
  const position = g.input("position", "int64", [1]);
  const parameters = unpackTensors(g, layout, inputPieces(g, layout, "weights"));
  const hidden = gather(g, family.hidden(g, config, parameters, tokens), position);
  g.output("logits", family.logits(g, config, parameters, hidden));
  return g.encode();
}
