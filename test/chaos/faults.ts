import type { Rng } from "#common/domain/rng.js";

/** What can be killed: a service, a store, one agent, or everything at once, `shoal up` included. */
export type Victim = "registry" | "scheduler" | "aggregator" | "telemetry" | "nats" | "redis" | "agent" | "everything";

export interface Fault {
  victim: Victim;
  /** Which of several (agents, replicas); reduced modulo their number. */
  index: number;
  /** Milliseconds to wait before the kill. */
  pauseMs: number;
  /** Milliseconds until a killed agent is started again. */
  downMs: number;
}

const WEIGHTS: readonly (readonly [Victim, number])[] = [
  ["registry", 2],
  ["scheduler", 3],
  ["aggregator", 4],
  ["telemetry", 1],
  ["nats", 2],
  ["redis", 2],
  ["agent", 6],
  ["everything", 0.6],
];

function drawVictim(rng: Rng): Victim {
  let left = rng.uniform() * WEIGHTS.reduce((sum, [, weight]) => sum + weight, 0);
  for (const [victim, weight] of WEIGHTS) {
    left -= weight;
    if (left < 0) return victim;
  }
  return "agent";
}

/** The faults of a run: the same for the same generator. Every kind of victim comes up in a run of 20 or more. */
export function drawFaults(rng: Rng, kills: number): Fault[] {
  const faults = Array.from({ length: kills }, () => ({
    victim: drawVictim(rng),
    index: rng.int(1000),
    pauseMs: 200 + Math.floor(rng.uniform() * 2300),
    downMs: Math.floor(rng.uniform() * 1200),
  }));
  if (kills >= 20) {
    const missing = WEIGHTS.map(([victim]) => victim).filter((v) => !faults.some((f) => f.victim === v));
    missing.forEach((victim, i) => {
      const fault = faults[(i + 1) * 2];
      if (fault !== undefined) fault.victim = victim;
    });
  }
  return faults;
}
