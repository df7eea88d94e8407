import { causalSequence } from "./attention.js";
import { GraphBuilder, type Initializer, type Value } from "./builder.js";
import { encodeModel } from "./encoding.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { parameterLayout, type TensorPlace } from "./layout.js";
import type { Parameters } from "./projection.js";

export interface InferenceExportOptions {
  /** Tokens of a sequence; graphs have no open dimensions. A shorter one is filled up behind its end with any tokens. */
  readonly seqLen: number;
  /** Sequences at once; 1 by default. */
  readonly batch?: number;
  /** Up to so many bytes of weights are put into the graph's file; 1 GiB by default, for ONNX files end at 2. */
  readonly inlineBytes?: number;
  /** Name of the file beside the graph for weights beyond that. */
  readonly dataFile?: string;
}

export interface InferenceExport {
  /** The .onnx file. */
  readonly model: Uint8Array;
  /** The file of the weights, where they are not in the graph's; a view of the vector given. */
  readonly data?: { readonly name: string; readonly bytes: Uint8Array };
}

const GIB = 2 ** 30;

/** A whole model's tensors as values of the graph, by their Hugging Face names. */
function bindWhole(g: GraphBuilder, places: readonly TensorPlace[]): Parameters {
  const values = new Map(places.map(({ name, shape }) => [name, g.input(name, "float32", shape)]));
  const tensor = (name: string): Value => {
    const value = values.get(name);
    if (value === undefined) throw new Error(`no tensor ${name}`);
    return value;
  };
  return { tensor, has: (name) => values.has(name), quantized: () => undefined, adapter: () => undefined };
}

/**
 * A model as an ONNX file of its own, for ONNX Runtime (it has operators of its com.microsoft domain).
 * Input: input_ids int64 [batch, seqLen]. Output: logits float32 [batch, seqLen, vocab], those of each next token.
 * @param weights flat [total] in the order of `parameterLayout`
 * @throws RangeError for weights of another model and for sequences beyond its context
 */
export function exportInferenceGraph(
  config: ModelConfig,
  weights: Float32Array,
  { seqLen, batch = 1, inlineBytes = GIB, dataFile = "model.onnx_data" }: InferenceExportOptions,
): InferenceExport {
  const { tensors, total } = parameterLayout(config);
  if (weights.length !== total) throw new RangeError(`${weights.length} weights for ${total} parameters`);
  if (seqLen > config.contextLength) {
    throw new RangeError(`a sequence of ${seqLen} tokens for a context of ${config.contextLength}`);
  }
  const g = new GraphBuilder();
  const family = familyOf(config);
  const tokens = g.input("input_ids", "int64", [batch, seqLen]);
  const parameters = bindWhole(g, tensors);
  const logits = family.logits(g, config, parameters, family.hidden(g, config, parameters, causalSequence(g, tokens)));
  // Always a new shape, so that the output is a node's.
  const shape = [batch, seqLen, config.vocabSize];
  const [shaped] = g.node("Reshape", [logits, g.ints(shape)], [{ type: "float32", shape }]);
  if (shaped === undefined) throw new Error("operator without output");
  g.output("logits", shaped);

  const inline = weights.byteLength <= inlineBytes;
  const dataOf = ({ offset, size }: TensorPlace): Initializer["data"] =>
    inline ? weights.subarray(offset, offset + size) : { location: dataFile, offset: 4 * offset, length: 4 * size };
  const given = tensors.map((place): Initializer => {
    return { name: place.name, type: "float32", shape: place.shape, data: dataOf(place) };
  });
  const model = g.model();
  const bytes = encodeModel({ ...model, inputs: [tokens], initializers: [...model.initializers, ...given] });
  if (inline) return { model: bytes };
  const data = new Uint8Array(weights.buffer, weights.byteOffset, weights.byteLength);
  return { model: bytes, data: { name: dataFile, bytes: data } };
}
