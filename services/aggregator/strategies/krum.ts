import { outerStep } from "./scaled-step.js";
import type { Gram, Strategy } from "./strategy.js";

/** Malicious updates to withstand among `count`: as wished, or as many as count >= 2 f + 3 allows, and never more. */
function faults(count: number, wished: number): number {
  const most = Math.max(0, Math.floor((count - 3) / 2));
  return wished > 0 ? Math.min(wished, most) : most;
}

/** Score of each update: the sum of its n - f - 2 smallest squared distances to others, at least one. */
function scores(gram: Gram, byzantine: number): number[] {
  const neighbours = Math.max(1, gram.length - byzantine - 2);
  return gram.map((row, i) => {
    const distances = Float64Array.from(row, (product, j) =>
      i === j ? Infinity : Math.max(0, (row[i] as number) + ((gram[j] as Float64Array)[j] as number) - 2 * product),
    ).sort();
    let score = 0;
    for (let k = 0; k < Math.min(neighbours, gram.length - 1); k++) score += distances[k] as number;
    return score;
  });
}

/** Equal coefficients for the `selected` updates with the least scores; of equal scores the first in log order. */
function choose(gram: Gram, byzantine: number, selected: number): Float64Array {
  const ofAll = scores(gram, byzantine);
  const order = [...ofAll.keys()].sort((a, b) => (ofAll[a] as number) - (ofAll[b] as number) || a - b);
  const coefficients = new Float64Array(gram.length);
  for (const k of order.slice(0, selected)) coefficients[k] = 1 / selected;
  return coefficients;
}

/** Krum (Blanchard 2017): the one update with the least score among n >= 2 f + 3. */
export const krum: Strategy = {
  name: "krum",
  rule: {
    kind: "coefficients",
    centred: false,
    weigh: (gram, { byzantine }) => choose(gram, faults(gram.length, byzantine), 1),
  },
  ...outerStep,
};

/** Multi-Krum (Blanchard 2017): the mean of the `selected` updates with the least scores, by default n - f of them. */
export const multiKrum: Strategy = {
  name: "multiKrum",
  rule: {
    kind: "coefficients",
    centred: false,
    weigh: (gram, { byzantine, selected }) => {
      const f = faults(gram.length, byzantine);
      const honest = gram.length - f;
      return choose(gram, f, selected > 0 ? Math.min(selected, honest) : honest);
    },
  },
  ...outerStep,
};
