import { z } from "zod";
import type { Violation } from "./resources.js";
import { remedyFor, suggest } from "./suggestion.js";

const MAX_SHOWN = 80;

/** A value as text for an error message, shortened. */
export function showValue(value: unknown): string {
  if (value === undefined) return "";
  const shown = typeof value === "number" || typeof value === "string" ? String(value) : JSON.stringify(value);
  return shown.length > MAX_SHOWN ? `${shown.slice(0, MAX_SHOWN)}...` : shown;
}

function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (value, key) =>
      typeof value === "object" && value !== null ? (value as Record<PropertyKey, unknown>)[key] : undefined,
    root,
  );
}

/** The schema without the wrappers that only add defaults or allow absence. */
function bare(schema: z.core.$ZodType): z.core.$ZodType {
  const wrapped = schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault || schema instanceof z.ZodOptional;
  return wrapped ? bare(schema.unwrap()) : schema;
}

/** The fields that the object at this path may have. */
function fieldsAt(schema: z.core.$ZodType, path: readonly PropertyKey[]): string[] {
  let at = bare(schema);
  for (const key of path) {
    const inner = at instanceof z.ZodObject ? (at.shape as Record<PropertyKey, z.core.$ZodType>)[key] : undefined;
    if (inner === undefined) return [];
    at = bare(inner);
  }
  return at instanceof z.ZodObject ? Object.keys(at.shape) : [];
}

const join = (path: readonly PropertyKey[]): string => path.map(String).join(".");

function unknownFields(schema: z.core.$ZodType, root: unknown, issue: z.core.$ZodIssueUnrecognizedKeys): Violation[] {
  const known = fieldsAt(schema, issue.path);
  return issue.keys.map((key) => {
    const field = join([...issue.path, key]);
    const value = showValue(valueAt(root, [...issue.path, key]));
    if (field === "status") return { field, value, description: "is written by the control plane; leave it out" };
    return { field, value, description: `is not a field here; ${remedyFor(key, known)}` };
  });
}

function oneOf(value: unknown, allowed: readonly unknown[]): string {
  const names = allowed.map(String);
  const near = typeof value === "string" ? suggest(value, names) : undefined;
  const list = `must be ${names.length === 1 ? "" : "one of "}${names.join(", ")}`;
  return near === undefined ? list : `${list}; did you mean "${near}"?`;
}

/** What the value must be instead; most fields bring their own words. */
function remedyOf(issue: z.core.$ZodIssue, value: unknown): string {
  if (issue.code === "invalid_value") return oneOf(value, issue.values);
  if (issue.code === "invalid_union") return "must be text, a finite number, true, false, null, a list or a map";
  return issue.message;
}

/** zod's issues as refused fields, each with its path in the manifest, what it held and the remedy. */
export function toViolations(schema: z.core.$ZodType, root: unknown, error: z.core.$ZodError): Violation[] {
  return error.issues.flatMap((issue): Violation[] => {
    if (issue.code === "unrecognized_keys") return unknownFields(schema, root, issue);
    const value = valueAt(root, issue.path);
    const must = remedyOf(issue, value);
    const description = value === undefined ? `is missing: it ${must}` : must;
    return [{ field: join(issue.path), value: showValue(value), description }];
  });
}
