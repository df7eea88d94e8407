/** A seeded generator: the same seed gives the same numbers on every machine. Not for secrets or privacy noise. */
export interface Rng {
  /** A number in [0, 1), 32 random bits. */
  uniform(): number;
  /** A standard normal number (Box-Muller, one draw per call). */
  normal(): number;
  /** An integer in [0, n), without modulo bias. `n` is a whole number from 1 to 2^32. */
  int(n: number): number;
  /** A shuffled copy (Fisher-Yates). */
  shuffle<T>(items: readonly T[]): T[];
}

const TWO_32 = 2 ** 32;

function splitmix32(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
}

const rotateLeft = (x: number, k: number): number => ((x << k) | (x >>> (32 - k))) >>> 0;

/** xoshiro128** (Blackman and Vigna 2018): 128 bits of state, period 2^128 - 1. Yields unsigned 32-bit integers. */
function xoshiro128(seed: number): () => number {
  const next = splitmix32(seed);
  // A seed above 32 bits must not collapse onto its low half.
  const high = splitmix32(Math.floor(Math.abs(seed) / TWO_32));
  let a = next();
  let b = next() ^ high();
  let c = next();
  let d = next() | 1;
  return () => {
    const result = Math.imul(rotateLeft(Math.imul(b, 5) >>> 0, 7), 9) >>> 0;
    const shifted = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = rotateLeft(d >>> 0, 11);
    return result;
  };
}

/**
 * The project's only source of repeatable randomness.
 * @param seed a whole number of at most 53 bits; callers derive it from names and round numbers.
 */
export function createRng(seed: number): Rng {
  const next = xoshiro128(seed);
  const uniform = (): number => next() / TWO_32;
  const int = (n: number): number => {
    const limit = TWO_32 - (TWO_32 % n);
    let draw = next();
    while (draw >= limit) draw = next();
    return draw % n;
  };
  return {
    uniform,
    int,
    normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
    shuffle: <T>(items: readonly T[]): T[] => {
      const copy = [...items];
      for (let i = copy.length - 1; i > 0; i--) {
        const j = int(i + 1);
        [copy[i], copy[j]] = [copy[j] as T, copy[i] as T];
      }
      return copy;
    },
  };
}
