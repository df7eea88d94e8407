import type { Candidate } from "#services/scheduler/eligibility.js";
import type { Device, Lease } from "#proto/shoal/v1/device.js";
import { Device as DeviceMessage } from "#proto/shoal/v1/device.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { decodeTrainingJob } from "#common/domain/manifest.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { readModel } from "#services/scheduler/model-reading.js";

export const NOW = 1_700_000_000_000;

/** A model small enough to build graphs of in a moment. */
export const TINY = { vocab_size: 256, n_positions: 16, n_embd: 8, n_layer: 1, n_head: 2 };
export const TINY_CONFIG = {
  family: "gpt2",
  vocabSize: 256,
  contextLength: 16,
  layers: 1,
  heads: 2,
  width: 8,
  layerNormEps: 1e-5,
} as const;

/** A manifest, with parts of its spec replaced. */
export function manifest(name: string, spec: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    apiVersion: API_VERSION,
    kind: "TrainingJob",
    metadata: { name },
    spec: {
      model: { config: TINY },
      data: { dataset: "speeches" },
      rounds: 3,
      local: { steps: 10, batchSize: 2 },
      ...spec,
    },
  };
}

/** The job of a manifest; throws if it is refused. */
export function jobOf(name: string, spec: Record<string, unknown> = {}): TrainingJob {
  const decoded = decodeTrainingJob(manifest(name, spec), readModel);
  if (!decoded.ok) throw new Error(JSON.stringify(decoded.violations));
  return decoded.value;
}

export interface DeviceTraits {
  gflops?: number;
  tokens?: number;
  minCohort?: number;
  memoryBytes?: number;
  labels?: Record<string, string>;
  cordoned?: boolean;
}

export function deviceOf(name: string, traits: DeviceTraits = {}): Device {
  const { gflops = 10, tokens = 10_000, minCohort = 0, memoryBytes = 4e9, labels = {}, cordoned = false } = traits;
  return DeviceMessage.fromPartial({
    apiVersion: API_VERSION,
    kind: "Device",
    metadata: newMeta(name, labels),
    spec: { cordoned },
    status: {
      facts: { gflops, memoryBytes },
      policy: { minCohort },
      datasets: [{ name: "speeches", tokens }],
    },
  });
}

export function leaseOf(name: string, renewedAtMs = NOW, expiresAtMs = renewedAtMs + 15_000): Lease {
  return { apiVersion: API_VERSION, kind: "Lease", metadata: newMeta(name), renewedAtMs, expiresAtMs };
}

export function candidateOf(name: string, traits: DeviceTraits = {}): Candidate {
  return {
    device: deviceOf(name, traits),
    lease: leaseOf(name),
    busyWith: undefined,
    refusedUpdate: undefined,
    msPerStep: [],
  };
}
