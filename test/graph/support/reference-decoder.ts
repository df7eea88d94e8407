import type { ModelConfig } from "#common/graph/config.js";
import { type ParameterLayout, parameterLayout } from "#common/graph/layout.js";

/**
 * The Llama-like families in float64, one number at a time: what the graphs are held against. Written from the models'
 * papers, not from the graphs' code.
 */

type DecoderConfig = Exclude<ModelConfig, { family: "gpt2" }>;
type Vector = number[];

/** Frequencies of the plain rotary embedding. */
export const plainFrequencies = (theta: number, size: number): Vector =>
  Array.from({ length: size / 2 }, (_, i) => 1 / theta ** ((2 * i) / size));

class Weights {
  readonly #layout: ParameterLayout;
  readonly #flat: Float32Array;

  constructor(config: DecoderConfig, flat: Float32Array) {
    this.#layout = parameterLayout(config);
    this.#flat = flat;
  }

  find(name: string): Float32Array | undefined {
    const place = this.#layout.tensors.find((tensor) => tensor.name === name);
    return place && this.#flat.subarray(place.offset, place.offset + place.size);
  }

  get(name: string): Float32Array {
    const values = this.find(name);
    if (values === undefined) throw new Error(name);
    return values;
  }

  /** y = W x + b with W [out, in]. */
  linear(module: string, x: Vector): Vector {
    const weight = this.get(`${module}.weight`);
    const bias = this.find(`${module}.bias`);
    return Array.from({ length: weight.length / x.length }, (_, row) =>
      x.reduce((sum, value, i) => sum + value * (weight[row * x.length + i] ?? NaN), bias?.[row] ?? 0),
    );
  }
}

function normalise(x: Vector, scale: Float32Array, eps: number): Vector {
  const rms = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + eps);
  return x.map((value, i) => (value / rms) * (scale[i] ?? NaN));
}

function rotate(x: Vector, position: number, frequencies: Vector, magnitude: number): Vector {
  const half = x.length / 2;
  return x.map((value, i) => {
    const angle = position * (frequencies[i % half] ?? NaN);
    const other = i < half ? -(x[i + half] ?? NaN) : (x[i - half] ?? NaN);
    return magnitude * (value * Math.cos(angle) + other * Math.sin(angle));
  });
}

const headOf = (x: Vector, head: number, size: number): Vector => x.slice(head * size, (head + 1) * size);
const dot = (a: Vector, b: Vector): number => a.reduce((sum, x, i) => sum + x * (b[i] ?? NaN), 0);

export interface Rotation {
  readonly frequencies: Vector;
  readonly magnitude: number;
}

/** Logits [t][vocab] of one row of tokens; `segments` tells packed documents apart. */
export function referenceLogits(
  config: DecoderConfig,
  flat: Float32Array,
  tokens: readonly number[],
  { rotation, segments = tokens.map(() => 0) }: { rotation: Rotation; segments?: readonly number[] },
): Vector[] {
  const weights = new Weights(config, flat);
  const { headSize, heads, kvHeads, rmsNormEps: eps, width, window } = config;
  const positions = tokens.map((_, i) => i - segments.indexOf(segments[i] ?? 0));
  const table = weights.get("model.embed_tokens.weight");
  let rows = tokens.map((token) => Array.from(table.subarray(token * width, (token + 1) * width)));
  for (let layer = 0; layer < config.layers; layer++) {
    const at = `model.layers.${layer}`;
    const inputs = rows.map((x) => normalise(x, weights.get(`${at}.input_layernorm.weight`), eps));
    const turned = (kind: "q" | "k", count: number): Vector[][] =>
      inputs.map((x, i) => {
        const y = weights.linear(`${at}.self_attn.${kind}_proj`, x);
        const scale = weights.find(`${at}.self_attn.${kind}_norm.weight`);
        return Array.from({ length: count }, (_, head) => {
          const part = headOf(y, head, headSize);
          const { frequencies, magnitude } = rotation;
          return rotate(scale ? normalise(part, scale, eps) : part, positions[i] ?? 0, frequencies, magnitude);
        });
      });
    const [q, k] = [turned("q", heads), turned("k", kvHeads)];
    const v = inputs.map((x) => weights.linear(`${at}.self_attn.v_proj`, x));
    const mixed = tokens.map((_, i) =>
      Array.from({ length: heads }, (_head, head) => {
        const shared = Math.floor(head / (heads / kvHeads));
        const seen = tokens
          .map((_token, j) => j)
          .filter((j) => j <= i && segments[j] === segments[i] && (window === 0 || i - j < window));
        const scores = seen.map((j) => Math.exp(dot(q[i]?.[head] ?? [], k[j]?.[shared] ?? []) / Math.sqrt(headSize)));
        const total = scores.reduce((sum, x) => sum + x, 0);
        return Array.from({ length: headSize }, (_value, d) =>
          seen.reduce((sum, j, n) => sum + ((scores[n] ?? NaN) / total) * (v[j]?.[shared * headSize + d] ?? NaN), 0),
        );
      }).flat(),
    );
    rows = rows.map((x, i) => {
      const attended = weights.linear(`${at}.self_attn.o_proj`, mixed[i] ?? []);
      return x.map((value, d) => value + (attended[d] ?? NaN));
    });
    rows = rows.map((x) => {
      const between = normalise(x, weights.get(`${at}.post_attention_layernorm.weight`), eps);
      const gate = weights.linear(`${at}.mlp.gate_proj`, between).map((z) => z / (1 + Math.exp(-z)));
      const up = weights.linear(`${at}.mlp.up_proj`, between);
      const down = weights.linear(
        `${at}.mlp.down_proj`,
        gate.map((z, i) => z * (up[i] ?? NaN)),
      );
      return x.map((value, d) => value + (down[d] ?? NaN));
    });
  }
  return rows.map((x) => {
    const last = normalise(x, weights.get("model.norm.weight"), eps);
    if (!config.tiedHead) return weights.linear("lm_head", last);
    return Array.from({ length: config.vocabSize }, (_, token) =>
      dot(last, Array.from(table.subarray(token * width, (token + 1) * width))),
    );
  });
}
