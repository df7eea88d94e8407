import { memberUpdates } from "#common/domain/site.js";
import type { MemberUpdate, Round, RoundResult } from "#proto/shoal/v1/round.js";
import type { SeriesPoint } from "#proto/shoal/v1/telemetry_service.js";

/** Every series, in the order in which the points of a round are written. */
export const METRICS = [
  "train_loss",
  "eval_loss",
  "bytes_up",
  "bytes_down",
  "round_seconds",
  "train_seconds",
  "local_steps",
  "tokens",
  "fold_seconds",
] as const;

export type Metric = (typeof METRICS)[number];

type Values = Partial<Record<Metric, number>>;

function valuesOfRound(round: Round | undefined, result: RoundResult): Values {
  const beganAtMs = round?.metadata?.createdAtMs ?? 0;
  const endedAtMs = result.metadata?.createdAtMs ?? 0;
  return {
    ...(result.tokens > 0 ? { train_loss: result.trainLoss } : {}),
    ...(result.evalLoss === undefined ? {} : { eval_loss: result.evalLoss }),
    bytes_up: result.bytesUp,
    bytes_down: result.bytesDown,
    ...(beganAtMs > 0 && endedAtMs >= beganAtMs ? { round_seconds: (endedAtMs - beganAtMs) / 1000 } : {}),
    fold_seconds: result.foldMs / 1000,
    tokens: result.tokens,
  };
}

function valuesOfDevice(update: MemberUpdate): Values {
  return {
    ...(update.localSteps > 0 ? { train_loss: update.trainLoss } : {}),
    ...(update.evalTokens > 0 ? { eval_loss: update.evalLossSum / update.evalTokens } : {}),
    bytes_up: update.sizeBytes,
    bytes_down: update.bytesDown,
    train_seconds: update.trainMs / 1000,
    local_steps: update.localSteps,
    tokens: update.tokens,
  };
}

function toPoints(values: Values, rest: Omit<SeriesPoint, "metric" | "value">): SeriesPoint[] {
  return METRICS.flatMap((metric) => {
    const value = values[metric];
    // A device may have said NaN of its loss; a hole in the series is more honest than a number.
    return value === undefined || !Number.isFinite(value) ? [] : [{ ...rest, metric, value }];
  });
}

/**
 * The points that a finished round adds: of the whole round (empty device), then of each folded device in fold order, also of those
 * whose gateway folded them.
 * Losses are nats per token; times are seconds. `round` may be gone, then its length is unknown and left out. The time
 * of all points is the creation of the result.
 */
export function pointsOf(round: Round | undefined, result: RoundResult): SeriesPoint[] {
  const common = { job: result.job, round: result.number, atMs: result.metadata?.createdAtMs ?? 0 };
  const whole = toPoints(valuesOfRound(round, result), { ...common, device: "" });
  const updates = result.folded.flatMap(({ manifest }) => (manifest === undefined ? [] : memberUpdates(manifest)));
  const devices = updates.flatMap((update) => toPoints(valuesOfDevice(update), { ...common, device: update.device }));
  return [...whole, ...devices];
}

/** What a query asks for; empty lists and texts ask for everything. */
export interface SeriesFilter {
  readonly metrics: readonly string[];
  readonly device: string;
  readonly fromRound: number;
}

export function matchesFilter(point: SeriesPoint, filter: SeriesFilter): boolean {
  return (
    point.round >= filter.fromRound &&
    (filter.device === "" || point.device === filter.device) &&
    (filter.metrics.length === 0 || filter.metrics.includes(point.metric))
  );
}
