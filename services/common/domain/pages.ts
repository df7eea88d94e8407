import type { Violation } from "./resources.js";

/** Largest and default numbers of items in a page. */
export interface PageLimits {
  readonly max: number;
  readonly fallback: number;
}

/** A validated request for a page: at most `size` items after the place `after`. */
export interface Page {
  readonly size: number;
  /** Last item of the page before; empty at the start. */
  readonly after: string;
}

export type ParsedPage = { ok: true; page: Page } | { ok: false; violations: Violation[] };

const VERSION = "1";
const SEPARATOR = "\n";

/** An opaque token that continues after an item. `scope` names list and filter, so that a token of another list is refused. */
export function pageToken(scope: string, after: string): string {
  return Buffer.from([VERSION, scope, after].join(SEPARATOR), "utf8").toString("base64url");
}

function placeOf(scope: string, token: string): string | undefined {
  const text = Buffer.from(token, "base64url").toString("utf8");
  const prefix = [VERSION, scope, ""].join(SEPARATOR);
  if (!text.startsWith(prefix)) return undefined;
  const after = text.slice(prefix.length);
  return pageToken(scope, after) === token ? after : undefined;
}

/** Reads page_size (0 means the default) and page_token. */
export function parsePage(pageSize: number, token: string, scope: string, limits: PageLimits): ParsedPage {
  const violations: Violation[] = [];
  if (!Number.isInteger(pageSize) || pageSize < 0 || pageSize > limits.max) {
    const description = `must be from 1 to ${limits.max}, or 0 for ${limits.fallback}`;
    violations.push({ field: "page_size", value: String(pageSize), description });
  }
  const after = token === "" ? "" : placeOf(scope, token);
  if (after === undefined) {
    const description = "is not a token of this list: send next_page_token unchanged, with the same filter, or nothing";
    violations.push({ field: "page_token", value: token.slice(0, 64), description });
  }
  if (violations.length > 0 || after === undefined) return { ok: false, violations };
  return { ok: true, page: { size: pageSize === 0 ? limits.fallback : pageSize, after } };
}

/** Cuts a page out of items in order of `key`; the token is empty on the last page. */
export function cutPage<T>(
  items: readonly T[],
  key: (item: T) => string,
  page: Page,
  scope: string,
): { items: T[]; nextPageToken: string } {
  const start = page.after === "" ? 0 : items.findIndex((item) => key(item) > page.after);
  const rest = start < 0 ? [] : items.slice(start);
  const taken = rest.slice(0, page.size);
  const last = taken.at(-1);
  const nextPageToken = last !== undefined && rest.length > taken.length ? pageToken(scope, key(last)) : "";
  return { items: taken, nextPageToken };
}
