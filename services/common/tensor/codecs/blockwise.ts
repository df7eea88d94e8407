import { fromHalf, toHalfCeil } from "../half.js";
import { InvariantError } from "../invariant.js";
import type { Random } from "./codec.js";

const HALF_INFINITY = 0x7c00;

/** Greatest magnitude of values[start, end). Throws an InvariantError on NaN or infinite values. */
export function absMax(values: Float32Array, start: number, end: number): number {
  let greatest = 0;
  for (let i = start; i < end; i++) {
    const magnitude = Math.abs(values[i] as number);
    // A NaN fails every comparison, so it comes in here too.
    if (!(magnitude <= greatest)) {
      if (!(magnitude < Infinity)) throw new InvariantError("cannot encode NaN or infinite values");
      greatest = magnitude;
    }
  }
  return greatest;
}

/** Writes the least fp16 scale that is at least `value` at byte `at`, and returns it: 0 only for 0. */
export function writeScale(bytes: Uint8Array, at: number, value: number): number {
  const bits = toHalfCeil(value);
  bytes[at] = bits & 0xff;
  bytes[at + 1] = bits >> 8;
  return fromHalf(bits);
}

/** The scale at byte `at`; undefined if the bits are no finite number from 0. */
export function readScale(bytes: Uint8Array, at: number): number | undefined {
  const bits = (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
  // Infinity, NaN and every negative number have bits at or above those of infinity.
  return bits >= HALF_INFINITY ? undefined : fromHalf(bits);
}

/** The whole number next to `value`, or one of its two neighbours by chance; within -most to most. */
export function roundLevel(value: number, most: number, random: Random | undefined): number {
  const level = random === undefined ? Math.round(value) : Math.floor(value + random());
  return Math.max(-most, Math.min(most, level));
}
