import type { Rng } from "#common/domain/rng.js";
import type { DecodeSession, LogitsSession } from "./backend.js";

export interface SamplingOptions {
  /** Tokens to make. */
  readonly count: number;
  /** 0 always takes the likeliest token; 1 samples from the model's own distribution. */
  readonly temperature: number;
  /** Only the k likeliest tokens are sampled from; 0 for all. */
  readonly topK: number;
  /** Only the likeliest tokens that together have this probability are sampled from (Holtzman et al. 2020); 1 for all. */
  readonly topP?: number;
}

/** Of weights in falling order, those whose sum first reaches the share of the whole. */
function nucleus(weights: readonly number[], share: number): readonly number[] {
  const wanted = share * weights.reduce((sum, weight) => sum + weight, 0);
  let sum = 0;
  const last = weights.findIndex((weight) => (sum += weight) >= wanted);
  return last < 0 ? weights : weights.slice(0, last + 1);
}

/** One token from logits [vocab]. The lower index wins a tie. */
export function sampleToken(logits: Float32Array, options: SamplingOptions, rng: Rng): number {
  const { temperature, topK, topP = 1 } = options;
  const order = Array.from(logits.keys()).sort((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0) || a - b);
  const best = order[0] ?? 0;
  if (temperature <= 0) return best;
  const candidates = topK > 0 ? order.slice(0, topK) : order;
  const top = logits[best] ?? 0;
  const all = candidates.map((token) => Math.exp(((logits[token] ?? 0) - top) / temperature));
  const weights = topP < 1 ? nucleus(all, topP) : all;
  let left = rng.uniform() * weights.reduce((sum, weight) => sum + weight, 0);
  for (const [i, weight] of weights.entries()) {
    left -= weight;
    if (left < 0) return candidates[i] ?? best;
  }
  return best;
}

/**
 * Continues a prompt token by token; only the newest `session.seqLen` tokens are seen.
 * @param prompt at least one token
 * @returns the new tokens as they are made, without the prompt
 */
export async function* generateTokens(
  session: LogitsSession,
  weights: Float32Array,
  prompt: readonly number[],
  options: SamplingOptions,
  rng: Rng,
): AsyncGenerator<number, void, undefined> {
  const tokens = [...prompt];
  for (let i = 0; i < options.count; i++) {
    const seen = Int32Array.from(tokens.slice(-session.seqLen));
    const token = sampleToken(await session.logits(weights, seen), options, rng);
    tokens.push(token);
    yield token;
  }
}

/**
 * As `generateTokens`, with a cache: every token is computed once. When the cache is full it begins again with the newer
 * half of what it held, so that at least half of its capacity is always seen.
 */
export async function* generateCached(
  session: DecodeSession,
  weights: Float32Array,
  prompt: readonly number[],
  options: SamplingOptions,
  rng: Rng,
): AsyncGenerator<number, void, undefined> {
  const tokens = prompt.slice(-session.capacity);
  session.reset();
  let fresh = tokens;
  for (let i = 0; i < options.count; i++) {
    if (session.filled + fresh.length > session.capacity) {
      session.reset();
      fresh = tokens.slice(-Math.max(1, session.capacity >> 1));
    }
    const token = sampleToken(await session.next(weights, Int32Array.from(fresh)), options, rng);
    tokens.push(token);
    fresh = [token];
    yield token;
  }
}
