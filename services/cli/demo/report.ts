import type { RoundWithResult } from "#proto/shoal/v1/job_service.js";
import type { Verdict } from "#proto/shoal/v1/round.js";

/** One device's part in a round. */
export interface DeviceReport {
  readonly device: string;
  readonly localSteps: number;
  /** Fetching and training. */
  readonly seconds: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
  readonly trainLoss: number;
}

/** One training round of the demo. */
export interface RoundReport {
  readonly round: number;
  /** Devices invited. */
  readonly cohort: number;
  readonly folded: number;
  readonly refused: number;
  readonly trainLoss: number;
  /** Held-out loss of the weights the round started from, measured by the devices; null if it was not measured. */
  readonly evalLoss: number | null;
  readonly bytesUp: number;
  readonly bytesDown: number;
  /** From the round's creation to its durable result. */
  readonly seconds: number;
  readonly devices: readonly DeviceReport[];
}

export interface FinalReport {
  /** Held-out loss of the federated model, nats per byte. */
  readonly federatedLoss: number;
  /** The same as the devices measured it in the evaluation round; null if there was none. */
  readonly fleetLoss: number | null;
  /** Held-out loss of fresh weights. */
  readonly initialLoss: number;
  readonly localOnlyLoss: {
    readonly best: number;
    readonly mean: number;
    readonly devices: readonly { readonly device: string; readonly steps: number; readonly loss: number }[];
  };
  readonly centralisedLoss: number;
  readonly centralisedSteps: number;
}

export interface BytesReport {
  readonly up: number;
  readonly down: number;
  /** What exchanging fp32 gradients and weights at every step would have moved, over what was moved. */
  readonly perStepFp32Ratio: number;
  readonly perStepFp32Bytes: number;
}

/** What `shoal demo --json` writes. */
export interface DemoReport {
  readonly name: "demo";
  readonly machine: {
    readonly cpu: string;
    readonly cores: number;
    readonly memoryBytes: number;
    readonly node: string;
  };
  readonly options: { readonly devices: number; readonly rounds: number; readonly seed: number };
  readonly parameters: number;
  readonly seconds: { readonly federated: number; readonly baselines: number; readonly total: number };
  readonly final: FinalReport;
  readonly bytes: BytesReport;
  readonly rounds: readonly RoundReport[];
  readonly samples: { readonly prompt: string; readonly before: string; readonly after: string };
  /** Folder with config.json and model.safetensors. */
  readonly checkpoint: string;
}

const FLOAT_BYTES = 4;

function deviceReport({ manifest }: Verdict): DeviceReport[] {
  if (manifest === undefined) return [];
  const seconds = (manifest.fetchMs + manifest.trainMs) / 1000;
  const { device, localSteps, sizeBytes: bytesUp, bytesDown, trainLoss } = manifest;
  return [{ device, localSteps, seconds, bytesUp, bytesDown, trainLoss }];
}

/** A finished round in figures; undefined while it has no result. */
export function reportRound({ round, result }: RoundWithResult): RoundReport | undefined {
  if (round === undefined || result === undefined) return undefined;
  const startMs = round.metadata?.createdAtMs ?? 0;
  const endMs = result.metadata?.createdAtMs ?? 0;
  return {
    round: result.number,
    cohort: round.status?.assignments.length ?? 0,
    folded: result.folded.length,
    refused: result.refused.length,
    trainLoss: result.trainLoss,
    evalLoss: result.evalLoss ?? null,
    bytesUp: result.bytesUp,
    bytesDown: result.bytesDown,
    seconds: Math.max(0, endMs - startMs) / 1000,
    devices: result.folded.flatMap(deviceReport),
  };
}

/** Local steps of every device over all rounds, in order of device. */
export function stepsByDevice(rounds: readonly RoundReport[]): Map<string, number> {
  const steps = new Map<string, number>();
  for (const { device, localSteps } of rounds.flatMap((round) => round.devices)) {
    steps.set(device, (steps.get(device) ?? 0) + localSteps);
  }
  return new Map([...steps].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/**
 * Bytes that were moved, beside data-parallel training that exchanges fp32 gradients up and fp32 weights down at every
 * step of every device.
 */
export function reportBytes(rounds: readonly RoundReport[], parameters: number): BytesReport {
  const up = rounds.reduce((sum, round) => sum + round.bytesUp, 0);
  const down = rounds.reduce((sum, round) => sum + round.bytesDown, 0);
  const steps = [...stepsByDevice(rounds).values()].reduce((sum, n) => sum + n, 0);
  const perStepFp32Bytes = 2 * FLOAT_BYTES * parameters * steps;
  return { up, down, perStepFp32Ratio: up + down > 0 ? perStepFp32Bytes / (up + down) : 0, perStepFp32Bytes };
}
