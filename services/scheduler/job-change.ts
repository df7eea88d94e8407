import { TrainingJobSpec, type TrainingJob } from "#proto/shoal/v1/job.js";
import { showValue } from "#common/domain/violation.js";

/** What applying a job does to the one of the same name. */
export type Change =
  { type: "unchanged" } | { type: "configured"; job: TrainingJob } | { type: "refused"; message: string };

type Plain = Record<string, unknown>;

const isPlain = (value: unknown): value is Plain =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Names first: a strategy's or codec's other fields follow from it. Then in order of the alphabet. */
const byImportance = (a: string, b: string): number =>
  Number(b === "name") - Number(a === "name") || (a < b ? -1 : Number(a > b));

/** Path of the first field that differs; undefined if none does. */
function firstDifference(
  a: unknown,
  b: unknown,
  path: string,
): { path: string; was: unknown; is: unknown } | undefined {
  if (!isPlain(a) || !isPlain(b)) {
    return JSON.stringify(a) === JSON.stringify(b) ? undefined : { path, was: a, is: b };
  }
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].sort(byImportance);
  for (const key of keys) {
    const found = firstDifference(a[key], b[key], `${path}.${key}`);
    if (found !== undefined) return found;
  }
  return undefined;
}

const MUTABLE = new Set(["rounds", "suspended"]);
const FINISHED = new Set(["Completed", "Cancelled", "Failed"]);

/** The spec without what may change, as JSON. */
function fixedPart(spec: TrainingJobSpec | undefined): Plain {
  const json = TrainingJobSpec.toJSON(spec ?? TrainingJobSpec.fromPartial({})) as Plain;
  return Object.fromEntries(Object.entries(json).filter(([key]) => !MUTABLE.has(key)));
}

const sortedEntries = (map: Readonly<Record<string, string>>): string => JSON.stringify(Object.entries(map).sort());

/** Why the number of rounds or the suspension cannot be changed any more; undefined if they can. */
function objection(stored: TrainingJob, rounds: number): string | undefined {
  const name = stored.metadata?.name ?? "";
  const { phase = "", currentRound = 0 } = stored.status ?? {};
  if (FINISHED.has(phase)) {
    return `job "${name}" is ${phase.toLowerCase()} and cannot be changed: apply another job with spec.model.base: ${name} to train on`;
  }
  if (currentRound > (stored.spec?.rounds ?? 0) && rounds !== stored.spec?.rounds) {
    return `spec.rounds of job "${name}" cannot be changed: its final evaluation has begun; apply another job with spec.model.base: ${name}`;
  }
  if (rounds < currentRound) {
    return `spec.rounds of job "${name}" cannot be ${rounds}: round ${currentRound} has begun; give at least ${currentRound}, or cancel the job`;
  }
  return undefined;
}

/**
 * Holds a wanted job against the stored one of its name. Only `rounds`, `suspended`, labels and annotations may change;
 * anything else would make the rounds of one job incomparable.
 */
export function changeOf(stored: TrainingJob, wanted: TrainingJob): Change {
  const name = stored.metadata?.name ?? "";
  const difference = firstDifference(fixedPart(stored.spec), fixedPart(wanted.spec), "spec");
  if (difference !== undefined) {
    const { path, was, is } = difference;
    const message =
      `job "${name}" exists with another ${path} (${showValue(was) || "unset"}, not ${showValue(is) || "unset"}): ` +
      `only spec.rounds and spec.suspended may change; apply it under another name, or delete the job first`;
    return { type: "refused", message };
  }
  const { rounds = 0, suspended = false } = wanted.spec ?? {};
  const isSameSpec = rounds === stored.spec?.rounds && suspended === stored.spec.suspended;
  const { metadata } = stored;
  const { labels = {}, annotations = {} } = wanted.metadata ?? {};
  if (metadata === undefined || stored.spec === undefined) return { type: "unchanged" };
  const isSameMeta =
    sortedEntries(labels) === sortedEntries(metadata.labels) &&
    sortedEntries(annotations) === sortedEntries(metadata.annotations);
  if (isSameSpec && isSameMeta) return { type: "unchanged" };
  const message = isSameSpec ? undefined : objection(stored, rounds);
  if (message !== undefined) return { type: "refused", message };
  const generation = metadata.generation + (isSameSpec ? 0 : 1);
  return {
    type: "configured",
    job: {
      ...stored,
      metadata: { ...metadata, labels, annotations, generation },
      spec: { ...stored.spec, rounds, suspended },
    },
  };
}
