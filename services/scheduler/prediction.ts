import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { downCodec } from "#common/domain/down-link.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { codecByName } from "#common/tensor/codec.js";
import { stepDemand } from "./demand.js";
import type { Candidate, Snapshot } from "./eligibility.js";

/** How long a device should take, and how long it should be given, milliseconds. */
export interface Prediction {
  predictedMs: number;
  /** The time after which the device would be an outlier among its own earlier rounds. */
  boundMs: number;
}

/** Until its next heartbeat a device does not know of the round. */
const NOTICE_MS = 5_000;
/** Bounds are median + 3 MAD of what was measured. */
const MADS = 3;
/** Calibration is done alone on the machine; training shares it. Used until a round has been measured. */
const UNMEASURED_FACTOR = 10;
const FLOAT_BYTES = 4;

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const high = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? high : ((sorted[middle - 1] ?? 0) + high) / 2;
}

/** Median and median absolute deviation. */
export function spreadOf(values: readonly number[]): { median: number; mad: number } {
  const middle = median(values);
  return { median: middle, mad: median(values.map((value) => Math.abs(value - middle))) };
}

const transferMs = (bytes: number, bytesPerSecond: number): number =>
  bytesPerSecond > 0 ? (bytes / bytesPerSecond) * 1000 : 0;

/**
 * Predicts a device's round: notice, fetching the weights, local steps, evaluation, upload. Steps are timed by the
 * device's own earlier rounds where there are any, else by its calibrated GFLOP/s.
 */
export function predict(
  candidate: Candidate,
  snapshot: Snapshot,
  job: TrainingJob,
  work: { localSteps: number; evaluate: boolean; recompute: boolean },
): Prediction {
  const { data, local, codec } = job.spec ?? {};
  const batch = local?.batchSize ?? 1;
  const seqLen = data?.seqLen ?? 1;
  const facts = candidate.device.status?.facts;
  const { flopsPerStep, values } = stepDemand(job, snapshot.config, work.recompute, facts?.cores);
  const measured = spreadOf(candidate.msPerStep);
  const isMeasured = candidate.msPerStep.length > 0;
  const stepMs = isMeasured ? measured.median : flopsPerStep / ((facts?.gflops ?? 1) * 1e6);
  const slowStepMs = isMeasured ? measured.median + MADS * measured.mad : stepMs * UNMEASURED_FACTOR;
  const tokens = candidate.device.status?.datasets.find((one) => one.name === data?.dataset)?.tokens ?? 0;
  const heldOut = data?.heldOutFraction ?? 0;
  // A forward pass is a third of a training step; `tokens` counts the training part only.
  const evalBatches = work.evaluate ? Math.ceil((tokens * heldOut) / (1 - heldOut) / (batch * seqLen)) : 0;
  const steps = work.localSteps + evalBatches / 3;
  // Of a model in fragments one travels a round; a device that was not in the last rounds fetches more.
  const sent = Math.ceil(values / Math.max(1, job.spec?.strategy?.fragments ?? 1));
  // With control variates twice as much travels either way.
  const vectors = strategyFacts(job.spec?.strategy?.name ?? "")?.controlled === true ? 2 : 1;
  const fetched = vectors * (isMeasured ? sent : values);
  // The change alone where it is encoded, also only for a device that was in the last round.
  const change = isMeasured ? downCodec(codec)?.encodedBytes(sent) : undefined;
  const encoded = codecByName(codec?.name ?? "", codec?.topk)?.encodedBytes(vectors * sent) ?? 0;
  const upBytes = work.localSteps > 0 ? encoded : 0;
  // The frozen part comes once, before a device's first step.
  const frozenBytes = isMeasured ? 0 : (job.status?.frozen?.blob?.sizeBytes ?? 0);
  const wireMs =
    transferMs((change ?? FLOAT_BYTES * fetched) + frozenBytes, facts?.downBytesPerSecond ?? 0) +
    transferMs(upBytes, facts?.upBytesPerSecond ?? 0);
  return {
    predictedMs: Math.ceil(NOTICE_MS + wireMs + steps * stepMs),
    boundMs: Math.ceil(NOTICE_MS + 2 * wireMs + steps * slowStepMs),
  };
}

const LEAST_DEADLINE_MS = 60_000;
const MOST_DEADLINE_MS = 24 * 3_600_000;
const MARGIN = 2;

/**
 * Time given to a round: twice the bound of the slowest of the `target` quickest devices, at least a minute, doubled for
 * every earlier attempt that ended without a quorum, at most a day.
 */
export function learnDeadlineMs(boundsMs: readonly number[], target: number, attempt: number): number {
  const sorted = [...boundsMs].sort((a, b) => a - b);
  const slowest = sorted[Math.min(target, sorted.length) - 1] ?? 0;
  const wanted = Math.max(LEAST_DEADLINE_MS, MARGIN * slowest) * 2 ** Math.min(attempt, 30);
  return Math.min(MOST_DEADLINE_MS, Math.ceil(wanted));
}
