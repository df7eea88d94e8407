import type { Sequence } from "../attention.js";
import type { GraphBuilder, Value } from "../builder.js";
import { fastGelu, layerNorm } from "../kernels.js";
import { add, dimension, gather, gemm, head, min, reshape } from "../ops.js";
import { type Parameters, project, projectParts } from "../projection.js";
import type { BatchShape, Family, ParameterSpec, Parsed, Projection } from "./family.js";
import { FieldReader } from "./fields.js";
import { initialStd } from "./initial.js";
import { neutralField } from "./neutral.js";

/** GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, gelu_new, biases, head tied to the token table. */
export interface Gpt2Config {
  readonly family: "gpt2";
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly layers: number;
  readonly heads: number;
  readonly width: number;
  readonly layerNormEps: number;
}

const LIMITS = {
  vocabSize: { max: 1_000_000, remedy: "the number of entries of the tokenizer" },
  contextLength: { max: 16_384, remedy: "the longest sequence in tokens" },
  layers: { max: 256, remedy: "the number of blocks" },
  heads: { max: 256, remedy: "a divisor of the width" },
  width: { max: 16_384, remedy: "a multiple of the number of heads" },
} as const;
type SizeField = keyof typeof LIMITS;
const SIZES = Object.keys(LIMITS) as SizeField[];
const HUGGING_FACE: Record<SizeField, string> = {
  vocabSize: "vocab_size",
  contextLength: "n_positions",
  layers: "n_layer",
  heads: "n_head",
  width: "n_embd",
};
const MAX_PARAMETERS = 500_000_000;
const DEFAULT_EPS = 1e-5;
function read(fields: FieldReader, name: (field: SizeField) => string, epsilon: string): Parsed<Gpt2Config> {
  const [vocabSize, contextLength, layers, heads, width] = SIZES.map((field) =>
    fields.size(name(field), LIMITS[field]),
  ) as [number, number, number, number, number];
  const layerNormEps = fields.numberBetween(epsilon, 0, 1, DEFAULT_EPS);
  const config = { family: "gpt2", vocabSize, contextLength, layers, heads, width, layerNormEps } as const;
  if (fields.violations.length === 0) {
    if (width % heads !== 0) fields.refuse(name("width"), `must be a multiple of ${name("heads")} (${heads})`);
    const total = (vocabSize + contextLength) * width + layers * width * (12 * width + 13);
    if (total > MAX_PARAMETERS) {
      fields.refuse(
        name("width"),
        `gives ${total} parameters, at most ${MAX_PARAMETERS} can be trained: make it smaller`,
      );
    }
  }
  return fields.violations.length === 0 ? { ok: true, config } : { ok: false, violations: fields.violations };
}

function parse(source: Readonly<Record<string, unknown>>): Parsed<Gpt2Config> {
  const fields = new FieldReader(source);
  fields.onlyFields(["family", ...SIZES, "layerNormEps"]);
  return read(fields, (field) => field, "layerNormEps");
}

function parseHuggingFace(source: Readonly<Record<string, unknown>>): Parsed<Gpt2Config> {
  const fields = new FieldReader(source);
  fields.only("activation_function", ["gelu_new"], 'only "gelu_new" is supported');
  fields.only("tie_word_embeddings", [true], "only true is supported: the head shares the token table");
  fields.only("scale_attn_weights", [true], "only true is supported");
  fields.only("scale_attn_by_inverse_layer_idx", [false], "only false is supported");
  fields.only("add_cross_attention", [false], "only false is supported: decoder-only models");
  const width = source["n_embd"];
  if (typeof width === "number") fields.only("n_inner", [4 * width], `must be absent, null or ${4 * width}`);
  fields.everyOf("architectures", ["GPT2LMHeadModel", "GPT2Model"]);
  fields.skip("n_inner");
  const parsed = read(fields, (field) => HUGGING_FACE[field], "layer_norm_epsilon");
  fields.refuseUnread(neutralField);
  return fields.violations.length === 0 ? parsed : { ok: false, violations: fields.violations };
}

function toHuggingFace(config: Gpt2Config): Record<string, unknown> {
  return {
    model_type: "gpt2",
    architectures: ["GPT2LMHeadModel"],
    vocab_size: config.vocabSize,
    n_positions: config.contextLength,
    n_ctx: config.contextLength,
    n_embd: config.width,
    n_layer: config.layers,
    n_head: config.heads,
    activation_function: "gelu_new",
    layer_norm_epsilon: config.layerNormEps,
    tie_word_embeddings: true,
    attn_pdrop: 0,
    embd_pdrop: 0,
    resid_pdrop: 0,
    torch_dtype: "float32",
  };
}

/** Shapes as Conv1D keeps them, [in, out]. What adds to the residual stream starts smaller, by sqrt(2 layers). */
function parameters(config: Gpt2Config): ParameterSpec[] {
  const { width, layers } = config;
  const std = initialStd(width);
  const normal = { mean: 0, std };
  const residual = { mean: 0, std: std / Math.sqrt(2 * layers) };
  const zeros = { mean: 0, std: 0 };
  const ones = { mean: 1, std: 0 };
  const norm = (name: string): ParameterSpec[] => [
    { name: `${name}.weight`, shape: [width], init: ones },
    { name: `${name}.bias`, shape: [width], init: zeros },
  ];
  const linear = (name: string, from: number, to: number, init: ParameterSpec["init"]): ParameterSpec[] => [
    { name: `${name}.weight`, shape: [from, to], init },
    { name: `${name}.bias`, shape: [to], init: zeros },
  ];
  const block = (layer: number): ParameterSpec[] => {
    const at = `transformer.h.${layer}`;
    return [
      ...norm(`${at}.ln_1`),
      ...linear(`${at}.attn.c_attn`, width, 3 * width, normal),
      ...linear(`${at}.attn.c_proj`, width, width, residual),
      ...norm(`${at}.ln_2`),
      ...linear(`${at}.mlp.c_fc`, width, 4 * width, normal),
      ...linear(`${at}.mlp.c_proj`, 4 * width, width, residual),
    ];
  };
  return [
    { name: "transformer.wte.weight", shape: [config.vocabSize, width], init: normal },
    { name: "transformer.wpe.weight", shape: [config.contextLength, width], init: normal },
    ...Array.from({ length: layers }, (_, layer) => block(layer)).flat(),
    ...norm("transformer.ln_f"),
  ];
}

function projections({ layers, width }: Gpt2Config): Projection[] {
  const conv = (module: string, from: number, to: number): Projection => ({ module, from, to, inOut: true });
  return Array.from({ length: layers }, (_, layer) => {
    const at = `transformer.h.${layer}`;
    return [
      conv(`${at}.attn.c_attn`, width, 3 * width),
      conv(`${at}.attn.c_proj`, width, width),
      conv(`${at}.mlp.c_fc`, width, 4 * width),
      conv(`${at}.mlp.c_proj`, 4 * width, width),
    ];
  }).flat();
}

/** Token and position embeddings of a sequence -> [b, t, width]. */
function embed(g: GraphBuilder, weights: Parameters, { tokens, positions, length }: Sequence): Value {
  const words = gather(g, weights.tensor("transformer.wte.weight"), tokens);
  const table = weights.tensor("transformer.wpe.weight");
  const time = dimension(tokens.shape, 1);
  if (positions.shape.length > 1) return add(g, words, gather(g, table, positions));
  // Rows that begin at 0 and fill the sequence need no lookup.
  if (time === length) return add(g, words, head(g, table, time));
  const places = Array.from({ length: time }, (_, i) => i);
  const rows = add(g, g.constant("int64", [1, time], places), positions);
  // Padding behind the last token may be beyond the table.
  const last = g.constant("int64", [], [dimension(table.shape, 0) - 1]);
  return add(g, words, gather(g, table, min(g, rows, last)));
}

function hidden(g: GraphBuilder, config: Gpt2Config, weights: Parameters, sequence: Sequence): Value {
  const { tokens } = sequence;
  const [batch, time] = [dimension(tokens.shape, 0), dimension(tokens.shape, 1)];
  const { width, heads, layerNormEps } = config;
  const size = width / heads;
  const norm = (name: string, x: Value): Value =>
    layerNorm(g, x, weights.tensor(`${name}.weight`), weights.tensor(`${name}.bias`), layerNormEps);
  const linear = (module: string, x: Value): Value => project(g, weights, module, false, x);
  let x = reshape(g, embed(g, weights, sequence), [batch * time, width]);
  const attended = (rows: Value, layer: number): Value => {
    const at = `transformer.h.${layer}.attn`;
    const parts = projectParts(g, weights, `${at}.c_attn`, 3, rows).map((part) =>
      reshape(g, part, [batch, time, dimension(part.shape, 1) / size, size]),
    );
    return linear(`${at}.c_proj`, sequence.attend(g, { parts, heads, kvHeads: heads, window: 0 }, layer));
  };
  for (let layer = 0; layer < config.layers; layer++) {
    const at = `transformer.h.${layer}`;
    x = g.segment(x, (input) => {
      const middle = add(g, input, attended(norm(`${at}.ln_1`, input), layer));
      const inner = fastGelu(g, linear(`${at}.mlp.c_fc`, norm(`${at}.ln_2`, middle)));
      return add(g, middle, linear(`${at}.mlp.c_proj`, inner));
    });
  }
  return norm("transformer.ln_f", x);
}

function multiplyAdds({ vocabSize, layers, width }: Gpt2Config, { batch, seqLen }: BatchShape): number {
  const block = 12 * width * width + 2 * seqLen * width;
  return batch * seqLen * (layers * block + vocabSize * width);
}

export const gpt2: Family<Gpt2Config> = {
  modelType: "gpt2",
  prefix: "transformer.",
  // Causal masks that older checkpoints carry as buffers.
  isRedundant: (name) => /^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$/.test(name),
  tiedTo: (_config, name) => (name === "lm_head.weight" ? "transformer.wte.weight" : undefined),
  parse,
  parseHuggingFace,
  toHuggingFace,
  parameters,
  projections,
  cacheShape: ({ heads, width }) => ({ kvHeads: heads, headSize: width / heads }),
  hidden,
  logits: (g, _config, weights, x) => gemm(g, x, weights.tensor("transformer.wte.weight"), { transB: true }),
  multiplyAdds,
};
