import { scaledStep } from "./scaled-step.js";
import type { Strategy } from "./strategy.js";

/**
 * SparseLoCo's outer step (Sarfi 2025): w += rate sum p_k Q(topk(e_k)), rate 1. There is no outer momentum: the devices'
 * decaying residuals, with which the codec "topk" sends, stand in for it.
 */
export const sparseLoco: Strategy = { name: "sparseLoco", rule: { kind: "mean" }, ...scaledStep };
