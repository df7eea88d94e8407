import type { Sequence } from "../../attention.js";
import type { GraphBuilder, Value } from "../../builder.js";
import { rmsNorm, rotary, type RotaryTable, silu } from "../../kernels.js";
import { add, dimension, gather, gemm, mul, reshape } from "../../ops.js";
import { type Parameters, project } from "../../projection.js";
import type { BatchShape, Family, ParameterSpec, Projection } from "../family.js";
import { initialStd } from "../initial.js";
import { type DecoderConfig, type DecoderTraits, parseHuggingFace, parseOwn, writeHuggingFace } from "./config.js";
import { rotaryValues } from "./rope.js";

type Traits = DecoderTraits<string>;

const blockName = (layer: number): string => `model.layers.${layer}`;

/** The seven linear modules of a block, in the order of Hugging Face's modules. */
function blockProjections(config: DecoderConfig, layer: number): Projection[] {
  const { width, innerWidth, heads, kvHeads, headSize } = config;
  const at = blockName(layer);
  const linear = (module: string, from: number, to: number): Projection => {
    return { module: `${at}.${module}`, from, to, inOut: false };
  };
  return [
    linear("self_attn.q_proj", width, heads * headSize),
    linear("self_attn.k_proj", width, kvHeads * headSize),
    linear("self_attn.v_proj", width, kvHeads * headSize),
    linear("self_attn.o_proj", heads * headSize, width),
    linear("mlp.gate_proj", width, innerWidth),
    linear("mlp.up_proj", width, innerWidth),
    linear("mlp.down_proj", innerWidth, width),
  ];
}

const headProjection = ({ width, vocabSize }: DecoderConfig): Projection => {
  return { module: "lm_head", from: width, to: vocabSize, inOut: false };
};

function hasBias(traits: Traits, config: DecoderConfig, module: string): boolean {
  if (module.includes(".mlp.")) return config.mlpBias;
  return traits.biases === "qkv" ? !module.endsWith(".o_proj") : config.attentionBias;
}

/** What adds to the residual stream starts smaller, by sqrt(2 layers), as in GPT-2. */
function parameters(traits: Traits, config: DecoderConfig): ParameterSpec[] {
  const std = initialStd(config.width);
  const residual = std / Math.sqrt(2 * config.layers);
  const norm = (name: string, size: number): ParameterSpec => {
    return { name: `${name}.weight`, shape: [size], init: { mean: 1, std: 0 } };
  };
  const linear = ({ module, from, to }: Projection): ParameterSpec[] => {
    const added = module.endsWith(".o_proj") || module.endsWith(".down_proj");
    const weight = { name: `${module}.weight`, shape: [to, from], init: { mean: 0, std: added ? residual : std } };
    const bias = { name: `${module}.bias`, shape: [to], init: { mean: 0, std: 0 } };
    return hasBias(traits, config, module) ? [weight, bias] : [weight];
  };
  const block = (layer: number): ParameterSpec[] => {
    const at = blockName(layer);
    const projections = blockProjections(config, layer);
    const perHead = traits.queryKeyNorm
      ? [norm(`${at}.self_attn.q_norm`, config.headSize), norm(`${at}.self_attn.k_norm`, config.headSize)]
      : [];
    return [
      norm(`${at}.input_layernorm`, config.width),
      ...projections.slice(0, 4).flatMap(linear),
      ...perHead,
      norm(`${at}.post_attention_layernorm`, config.width),
      ...projections.slice(4).flatMap(linear),
    ];
  };
  const table = [config.vocabSize, config.width];
  return [
    { name: "model.embed_tokens.weight", shape: table, init: { mean: 0, std } },
    ...Array.from({ length: config.layers }, (_, layer) => block(layer)).flat(),
    norm("model.norm", config.width),
    ...(config.tiedHead ? [] : [{ name: "lm_head.weight", shape: table, init: { mean: 0, std } }]),
  ];
}

/** Queries or keys: projected, normalised head by head where the family does so (Henry et al. 2020), rotated. */
function rotatedHeads(
  g: GraphBuilder,
  traits: Traits,
  config: DecoderConfig,
  weights: Parameters,
  { at, kind, x, sequence, table }: { at: string; kind: "q" | "k"; x: Value; sequence: Sequence; table: RotaryTable },
): Value {
  const size = config.headSize;
  let y = project(g, weights, `${at}.${kind}_proj`, true, x);
  const rows = y.shape;
  if (traits.queryKeyNorm) {
    const heads = reshape(g, y, [(dimension(rows, 0) * dimension(rows, 1)) / size, size]);
    y = reshape(g, rmsNorm(g, heads, weights.tensor(`${at}.${kind}_norm.weight`), config.rmsNormEps), rows);
  }
  const [batch, time] = [dimension(sequence.tokens.shape, 0), dimension(sequence.tokens.shape, 1)];
  const turned = rotary(g, reshape(g, y, [batch, time, dimension(rows, 1)]), sequence.positions, table);
  return reshape(g, turned, [batch, time, dimension(rows, 1) / size, size]);
}

function hidden(g: GraphBuilder, traits: Traits, config: DecoderConfig, weights: Parameters, seq: Sequence): Value {
  const { heads, kvHeads, headSize, contextLength, rmsNormEps, width } = config;
  const { cos, sin } = rotaryValues(config.rope, headSize, contextLength, seq.length, seq.reach);
  const shape = [seq.reach, headSize / 2];
  const table = { cos: g.constant("float32", shape, cos), sin: g.constant("float32", shape, sin) };
  const [batch, time] = [dimension(seq.tokens.shape, 0), dimension(seq.tokens.shape, 1)];
  const rows = batch * time;
  const normed = (name: string, x: Value): Value => rmsNorm(g, x, weights.tensor(`${name}.weight`), rmsNormEps);
  let x = reshape(g, gather(g, weights.tensor("model.embed_tokens.weight"), seq.tokens), [rows, width]);
  const attended = (x: Value, layer: number): Value => {
    const at = `${blockName(layer)}.self_attn`;
    const parts = [
      rotatedHeads(g, traits, config, weights, { at, kind: "q", x, sequence: seq, table }),
      rotatedHeads(g, traits, config, weights, { at, kind: "k", x, sequence: seq, table }),
      reshape(g, project(g, weights, `${at}.v_proj`, true, x), [batch, time, kvHeads, headSize]),
    ];
    const mixed = seq.attend(g, { parts, heads, kvHeads, window: config.window }, layer);
    return project(g, weights, `${at}.o_proj`, true, mixed);
  };
  // SwiGLU (Shazeer 2020).
  const gated = (x: Value, layer: number): Value => {
    const at = `${blockName(layer)}.mlp`;
    const gate = silu(g, project(g, weights, `${at}.gate_proj`, true, x));
    return project(g, weights, `${at}.down_proj`, true, mul(g, gate, project(g, weights, `${at}.up_proj`, true, x)));
  };
  for (let layer = 0; layer < config.layers; layer++) {
    const at = blockName(layer);
    x = g.segment(x, (input) => {
      const middle = add(g, input, attended(normed(`${at}.input_layernorm`, input), layer));
      return add(g, middle, gated(normed(`${at}.post_attention_layernorm`, middle), layer));
    });
  }
  return normed("model.norm", x);
}

function multiplyAdds(config: DecoderConfig, { batch, seqLen }: BatchShape): number {
  const { vocabSize, layers, heads, kvHeads, headSize, width, innerWidth } = config;
  const [query, keys] = [heads * headSize, kvHeads * headSize];
  const block = 2 * width * (query + keys) + 3 * width * innerWidth + 2 * seqLen * query;
  return batch * seqLen * (layers * block + vocabSize * width);
}

/** A family of decoders from what is particular about it. */
export function decoderFamily<F extends string>(traits: DecoderTraits<F>): Family<DecoderConfig<F>> {
  return {
    modelType: traits.family,
    prefix: "model.",
    // Frequencies that older checkpoints carry as buffers.
    isRedundant: (name) => /^(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq$/.test(name),
    tiedTo: ({ tiedHead }, name) => (tiedHead && name === "lm_head.weight" ? "model.embed_tokens.weight" : undefined),
    parse: (source) => parseOwn(traits, source),
    parseHuggingFace: (source) => parseHuggingFace(traits, source),
    toHuggingFace: (config) => writeHuggingFace(traits, config),
    parameters: (config) => parameters(traits, config),
    projections: (config) => [
      ...Array.from({ length: config.layers }, (_, layer) => blockProjections(config, layer)).flat(),
      ...(config.tiedHead ? [] : [headProjection(config)]),
    ],
    cacheShape: ({ kvHeads, headSize }) => ({ kvHeads, headSize }),
    hidden: (g, config, weights, sequence) => hidden(g, traits, config, weights, sequence),
    logits: (g, config, weights, x) =>
      config.tiedHead
        ? gemm(g, x, weights.tensor("model.embed_tokens.weight"), { transB: true })
        : project(g, weights, "lm_head", true, x),
    multiplyAdds,
  };
}
