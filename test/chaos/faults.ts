import type { Rng } from "#common/domain/rng.js";

/** What a fault needs of the run: a NATS cluster, network namespaces, or file systems of its own. */
export type Need = "cluster" | "network" | "mounts";

/** One kind of fault. Durations in milliseconds are drawn evenly between the two bounds. */
export interface FaultKind {
  /** What is done, as the report names it. */
  readonly title: string;
  /** How often it is drawn, relative to the others. */
  readonly weight: number;
  /** How long it lasts; a killed agent is down for so long, a killed service until its supervisor has started it. */
  readonly holdMs: readonly [number, number];
  readonly needs?: Need;
}

/** Every kind of fault of a run. */
export const FAULT_KINDS = {
  agent: { title: "SIGKILL of an agent", weight: 6, holdMs: [0, 4000] },
  aggregator: { title: "SIGKILL of an aggregator", weight: 5, holdMs: [0, 0] },
  scheduler: { title: "SIGKILL of a scheduler", weight: 3, holdMs: [0, 0] },
  registry: { title: "SIGKILL of a registry", weight: 2, holdMs: [0, 0] },
  telemetry: { title: "SIGKILL of a telemetry", weight: 1, holdMs: [0, 0] },
  nats: { title: "SIGKILL of a NATS server", weight: 2, holdMs: [0, 0] },
  "nats-leader": {
    title: "SIGKILL of the leader of a stream or of the cluster",
    weight: 4,
    holdMs: [0, 0],
    needs: "cluster",
  },
  redis: { title: "SIGKILL of Redis, its memory lost", weight: 2, holdMs: [0, 0] },
  everything: { title: "SIGKILL of everything at once", weight: 0.6, holdMs: [0, 0] },
  "freeze-agent": { title: "an agent stopped for seconds", weight: 1, holdMs: [1000, 8000] },
  "freeze-service": { title: "a service stopped for seconds", weight: 2, holdMs: [1000, 20_000] },
  "link-down": { title: "a device's link down", weight: 3, holdMs: [500, 8000], needs: "network" },
  silence: { title: "every packet of a device dropped", weight: 2, holdMs: [500, 12_000], needs: "network" },
  loss: { title: "20 % of a device's packets dropped each way", weight: 3, holdMs: [2000, 12_000], needs: "network" },
  slow: { title: "a device's link at 1 Mbit/s", weight: 3, holdMs: [2000, 12_000], needs: "network" },
  "disk-agent": { title: "an agent's disk full", weight: 3, holdMs: [1000, 6000], needs: "mounts" },
  "disk-nats": { title: "a NATS server's disk full", weight: 2, holdMs: [1000, 6000], needs: "mounts" },
  "clock-agent": { title: "an agent's clock moved by up to 30 days", weight: 2, holdMs: [1000, 8000] },
  "clock-service": { title: "a service's clock moved by up to 30 days", weight: 4, holdMs: [1000, 8000] },
} as const satisfies Readonly<Record<string, FaultKind>>;

export type KindName = keyof typeof FAULT_KINDS;
export const KIND_NAMES = Object.keys(FAULT_KINDS) as KindName[];

export interface Fault {
  kind: KindName;
  /** Which of several (agents, replicas, servers); reduced modulo their number. */
  index: number;
  /** Milliseconds to wait before the fault. */
  pauseMs: number;
  /** Milliseconds it lasts. */
  holdMs: number;
  /** Milliseconds a clock is moved by, forwards or backwards; of no other meaning. */
  jumpMs: number;
}

const kindOf = (name: KindName): FaultKind => FAULT_KINDS[name];
const MINUTE_MS = 60_000;
const LONGEST_JUMP_MS = 30 * 86_400_000;

function drawKind(rng: Rng, kinds: readonly KindName[]): KindName {
  let left = rng.uniform() * kinds.reduce((sum, name) => sum + kindOf(name).weight, 0);
  for (const name of kinds) {
    left -= kindOf(name).weight;
    if (left < 0) return name;
  }
  return kinds.at(-1) ?? "agent";
}

/** A jump from a minute to a month, all orders of magnitude alike, in either direction. */
function drawJumpMs(rng: Rng): number {
  const size = MINUTE_MS * (LONGEST_JUMP_MS / MINUTE_MS) ** rng.uniform();
  return Math.round(rng.uniform() < 0.5 ? -size : size);
}

/**
 * The faults of a run: the same for the same generator. In a run with at least twice as many faults as kinds every kind
 * comes up.
 * @param kinds that may be drawn; at least one
 * @param paceMs mean pause between two faults
 */
export function drawFaults(rng: Rng, count: number, kinds: readonly KindName[], paceMs: number): Fault[] {
  const names = Array.from({ length: count }, () => drawKind(rng, kinds));
  if (count >= 2 * kinds.length) {
    for (const missing of kinds.filter((name) => !names.includes(name))) {
      const spare = names.findIndex((name, i) => names.indexOf(name) !== i);
      if (spare >= 0) names[spare] = missing;
    }
  }
  return names.map((kind) => {
    const [shortest, longest] = kindOf(kind).holdMs;
    return {
      kind,
      index: rng.int(1000),
      pauseMs: Math.round(2 * paceMs * rng.uniform()),
      holdMs: Math.round(shortest + (longest - shortest) * rng.uniform()),
      jumpMs: drawJumpMs(rng),
    };
  });
}
