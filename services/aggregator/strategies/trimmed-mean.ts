import { outerStep } from "./scaled-step.js";
import type { Strategy } from "./strategy.js";

/**
 * Updates that are left out at either end: the share `trim` of `count`, rounded up, so that 0.2 withstands 2 of 8; as long
 * as one remains.
 */
export function trimmedCount(count: number, trim: number): number {
  // 0.2 x 35 is a little above 7 in float64.
  const whole = Math.max(0, Math.ceil(trim * count - 1e-9));
  return Math.min(whole, Math.floor((count - 1) / 2));
}

/** Up to so many values are sorted as they come, which is quicker than a call. */
const FEW = 32;

/** The values of coordinate `i`, in ascending order. */
function sortColumn(columns: readonly Float32Array[], i: number, sorted: Float32Array): void {
  const count = columns.length;
  for (let k = 0; k < count; k++) {
    const value = (columns[k] as Float32Array)[i] as number;
    let at = k;
    if (count <= FEW) for (; at > 0 && (sorted[at - 1] as number) > value; at--) sorted[at] = sorted[at - 1] as number;
    sorted[at] = value;
  }
  if (count > FEW) sorted.sort();
}

/** Mean of each coordinate over the updates without the `dropped` least and greatest values. */
export function meanWithoutEnds(columns: readonly Float32Array[], dropped: number, out: Float64Array): void {
  const count = columns.length;
  const sorted = new Float32Array(count);
  for (let i = 0; i < out.length; i++) {
    sortColumn(columns, i, sorted);
    let sum = 0;
    for (let k = dropped; k < count - dropped; k++) sum += sorted[k] as number;
    out[i] = sum / (count - 2 * dropped);
  }
}

/**
 * Coordinate-wise trimmed mean (Yin 2018, "Byzantine-Robust Distributed Learning"): of each coordinate the mean without the
 * share `trim` at either end. With no more malicious updates than are left out, every coordinate lies between the least
 * and the greatest honest value. Does not depend on the order of the updates, to the bit.
 */
export const trimmedMean: Strategy = {
  name: "trimmedMean",
  rule: {
    kind: "columns",
    combine: (columns, out, { trim }) => {
      meanWithoutEnds(columns, trimmedCount(columns.length, trim), out);
    },
  },
  ...outerStep,
};
