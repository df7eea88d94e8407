import { scaledStep } from "./scaled-step.js";
import type { Strategy } from "./strategy.js";

/**
 * FedBuff's server (Nguyen 2022, arXiv 2106.06639, algorithm 1): once K updates wait, w += eta_g (1/K) sum s(tau_k) Delta_k with
 * s(tau) = 1 / sqrt(1 + tau). Delta_k is what a device learnt since the weights it started from, tau_k the number of rounds
 * folded meanwhile. The shares s do not count as weight: stale updates make the step smaller, they do not give theirs to others.
 * What waits, and which K are taken, is the scheduler's (`domain/staleness.ts`); the fold set says how stale each is.
 */
export const fedbuff: Strategy = { name: "fedbuff", rule: { kind: "mean" }, ...scaledStep };
