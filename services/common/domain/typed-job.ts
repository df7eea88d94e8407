import type { TrainingJob, TrainingJobSpec } from "#proto/shoal/v1/job.js";
import { type Decoded, decodeTrainingJob, type ReadModel } from "./manifest.js";
import { FOREIGN_CONSTANTS } from "./job-schema.js";
import { API_VERSION } from "./resources.js";
import { STRATEGY_PARAMETERS, strategyFacts } from "./strategy-table.js";

type Plain = Record<string, unknown>;

const isPlain = (value: unknown): value is Plain =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Maps whose entries are the user's, so that they are taken whole. */
const MAPS = new Set(["config", "selector"]);

/** A message without the fields that are at their zero: absent, as far as proto3 can tell. */
function withoutZeros(message: Plain): Plain {
  const kept = Object.entries(message).flatMap(([key, value]): [string, unknown][] => {
    if (value === undefined || value === 0 || value === "" || value === false) return [];
    if (Array.isArray(value) && value.length === 0) return [];
    if (!isPlain(value)) return [[key, value]];
    const inner = MAPS.has(key) ? value : withoutZeros(value);
    return Object.keys(inner).length === 0 ? [] : [[key, inner]];
  });
  return Object.fromEntries(kept);
}

/** `over`, and where it says nothing, `under`. */
function merge(under: Plain, over: Plain): Plain {
  const merged: Plain = { ...under };
  for (const [key, value] of Object.entries(over)) {
    const old = under[key];
    merged[key] = isPlain(value) && isPlain(old) && !MAPS.has(key) ? merge(old, value) : value;
  }
  return merged;
}

/** A message as a manifest would say it: every field, but without messages and texts that are unset. */
function asManifest(message: Plain): Plain {
  const kept = Object.entries(message).filter(([, value]) => value !== undefined && value !== "");
  return Object.fromEntries(
    kept.map(([key, value]) => [key, isPlain(value) && !MAPS.has(key) ? asManifest(value) : value]),
  );
}

/** What of a stored message belongs to it, given the keys that do not. */
function without(message: object | undefined, foreign: readonly string[]): Plain {
  return Object.fromEntries(Object.entries(message ?? {}).filter(([key]) => !foreign.includes(key)));
}

/** A stored spec as a manifest would say it, without what belongs to optimizers, strategies and codecs it does not use. */
function storedManifest({ local, strategy, codec, ...spec }: TrainingJobSpec): Plain {
  const { optimizer, ...rest } = local ?? {};
  const own = strategyFacts(strategy?.name ?? "")?.parameters ?? {};
  return asManifest({
    ...spec,
    local: { ...rest, optimizer: without(optimizer, FOREIGN_CONSTANTS[optimizer?.name ?? ""] ?? []) },
    strategy: without(
      strategy,
      STRATEGY_PARAMETERS.filter((key) => !(key in own)),
    ),
    codec: without(codec, codec?.errorDecay === 0 ? ["errorDecay"] : []),
  });
}

/**
 * The typed gRPC form under the same rules. Proto3 cannot tell zero from absent, so a zero means what the stored job
 * says, if there is one, and else the default; `suspended` alone is taken as it is. To set a field to zero use a manifest.
 */
export function completeTrainingJob(
  job: TrainingJob,
  readModel: ReadModel,
  stored?: TrainingJobSpec,
): Decoded<TrainingJob> {
  const given = withoutZeros({ ...job.spec });
  const spec = merge(stored === undefined ? {} : storedManifest(stored), given);
  const { name = "", labels = {}, annotations = {} } = job.metadata ?? {};
  const document = {
    apiVersion: job.apiVersion === "" ? API_VERSION : job.apiVersion,
    kind: job.kind === "" ? "TrainingJob" : job.kind,
    metadata: { name, labels, annotations },
    spec: { ...spec, suspended: job.spec?.suspended ?? false },
  };
  return decodeTrainingJob(document, readModel);
}
