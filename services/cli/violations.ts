import { LineCounter, parseDocument } from "yaml";
import type { FieldViolation } from "#common/adapters/grpc/errors.js";
import { printable } from "./output/table.js";

/** "spec.cohort[0].min" as the keys to follow from the root. */
export function pathKeys(field: string): (string | number)[] {
  return [...field.matchAll(/([^.[\]]+)|\[(\d+)\]/g)].map(([, key, index]) =>
    index === undefined ? (key ?? "") : Number(index),
  );
}

/**
 * Line (from 1) of the text on which a field stands; for a field that is missing, that of the nearest parent.
 * Undefined if the text is not YAML or nothing of the path is in it.
 */
export function lineOf(manifest: string, field: string): number | undefined {
  const lines = new LineCounter();
  const document = parseDocument(manifest, { lineCounter: lines, strict: false });
  const keys = pathKeys(field);
  for (let depth = keys.length; depth > 0; depth--) {
    const parent: unknown = depth === 1 ? document.contents : document.getIn(keys.slice(0, depth - 1), true);
    const offset = offsetIn(parent, keys[depth - 1]);
    if (offset !== undefined) return lines.linePos(offset).line;
  }
  return undefined;
}

/** Offset of a key in a map, or of an item in a sequence. */
function offsetIn(parent: unknown, key: string | number | undefined): number | undefined {
  if (typeof parent !== "object" || parent === null || !("items" in parent) || !Array.isArray(parent.items)) return;
  const items = parent.items as unknown[];
  const item = typeof key === "number" ? items[key] : items.find((pair) => keyOf(pair) === key);
  return rangeStart(typeof key === "number" ? item : (item as { key?: unknown } | undefined)?.key);
}

function keyOf(pair: unknown): unknown {
  if (typeof pair !== "object" || pair === null || !("key" in pair)) return undefined;
  const { key } = pair;
  return typeof key === "object" && key !== null && "value" in key ? key.value : key;
}

function rangeStart(node: unknown): number | undefined {
  if (typeof node !== "object" || node === null || !("range" in node) || !Array.isArray(node.range)) return undefined;
  const [start] = node.range as unknown[];
  return typeof start === "number" ? start : undefined;
}

/** A readable list of refused fields, each with its line in the manifest where it has one. */
export function formatViolations(source: string, manifest: string, violations: readonly FieldViolation[]): string {
  const head = `${source}: ${violations.length} ${violations.length === 1 ? "field is" : "fields are"} not valid\n`;
  const lines = violations.map((violation) => {
    const line = lineOf(manifest, violation.field);
    const place = line === undefined ? source : `${source}:${line}`;
    const field = violation.field === "" ? "the manifest" : violation.field;
    return `  ${place}: ${field}: ${printable(violation.description)}\n`;
  });
  return head + lines.join("");
}
