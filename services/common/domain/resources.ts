import type { ObjectMeta } from "#proto/shoal/v1/meta.js";

export const API_VERSION = "shoal.dev/v1alpha1";

/** A refused field: where, what it held, and what to do. */
export interface Violation {
  /** Path in the manifest, e.g. "spec.local.steps". */
  field: string;
  /** The offending value as text, shortened. */
  value: string;
  /** What is wrong and the remedy. */
  description: string;
}

/** Metadata of a new resource; the store fills uid, resourceVersion and createdAtMs. */
export function newMeta(name: string, labels: Record<string, string> = {}): ObjectMeta {
  return { name, uid: "", labels, annotations: {}, generation: 1, resourceVersion: "", createdAtMs: 0 };
}

const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** Whether a name is a DNS label: lower-case letters, digits and inner '-', at most 63 characters. */
export function isResourceName(name: string): boolean {
  return NAME.test(name);
}

/** Empty if the text is a resource name, else one violation. Asked before any name of a request reaches the store. */
export function nameViolations(field: string, name: string): Violation[] {
  if (isResourceName(name)) return [];
  const description = "must be 1 to 63 lower-case letters, digits and inner '-'";
  return [{ field, value: name.slice(0, 64), description }];
}

/** Name of a job's round; also of its tally and result. */
export function roundName(job: string, number: number): string {
  return `${job}-${number}`;
}
