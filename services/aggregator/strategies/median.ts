import { outerStep } from "./scaled-step.js";
import type { Strategy } from "./strategy.js";
import { meanWithoutEnds } from "./trimmed-mean.js";

/**
 * Coordinate-wise median (Yin 2018); of an even number the mean of the two in the middle. While fewer than half of the
 * updates are malicious, every coordinate lies between the least and the greatest honest value.
 */
export const median: Strategy = {
  name: "median",
  rule: {
    kind: "columns",
    combine: (columns, out) => {
      meanWithoutEnds(columns, Math.floor((columns.length - 1) / 2), out);
    },
  },
  ...outerStep,
};
