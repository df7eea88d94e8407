/** An update of a round that may have begun long ago. */
export interface StaleUpdate {
  /** w_local - w_start, where w_start are the weights the device began with. */
  readonly delta: Float32Array;
  /** Outer steps taken between the device's start and now. */
  readonly staleness: number;
}

/** When and how buffered updates are applied. */
export interface BufferOptions {
  /** Updates that are applied together: K. */
  readonly size: number;
  /** eta_g. */
  readonly rate: number;
  /** Updates that are staler are dropped. */
  readonly maxStaleness: number;
}

/** The share with which a stale update counts: 1 / sqrt(1 + staleness). */
export const stalenessShare = (staleness: number): number => 1 / Math.sqrt(1 + staleness);

/**
 * FedBuff (Nguyen 2022), the server's part: once K updates wait, w += eta_g (1/K) sum s(staleness) Delta over the first K of
 * them, in the order of their arrival. Those beyond `maxStaleness` never count towards K.
 * @returns the next weights and how many of the waiting updates were used up, dropped ones included; undefined as long as
 *   fewer than K wait.
 */
export function applyBuffer(
  weights: Float32Array,
  waiting: readonly StaleUpdate[],
  { size, rate, maxStaleness }: BufferOptions,
): { weights: Float32Array; used: number } | undefined {
  const sum = new Float64Array(weights.length);
  let count = 0;
  for (const [k, { delta, staleness }] of waiting.entries()) {
    if (staleness > maxStaleness) continue;
    const share = stalenessShare(staleness);
    for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + share * (delta[i] as number);
    count += 1;
    if (count === size) {
      const next = weights.map((value, i) => value + (rate / size) * (sum[i] as number));
      return { weights: next, used: k + 1 };
    }
  }
  return undefined;
}
