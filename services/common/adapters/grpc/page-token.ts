import { invalidArgument } from "./errors.js";

/** Bounds of a page_size field: 0 means the default; beyond the bounds is refused with a field violation. */
export function pageSize(requested: number, options: { default: number; max: number }): number {
  if (requested === 0) return options.default;
  if (requested < 0 || requested > options.max)
    throw invalidArgument([
      {
        field: "page_size",
        value: String(requested),
        description: `must be from 1 to ${options.max}, or 0 for ${options.default}`,
      },
    ]);
  return requested;
}

/**
 * A page of items that are ordered by a key: those after the token's key. The token names the last key of the page before
 * it, so pages stay right while items come and go. A token of another list is refused with a field violation.
 *
 * @param list names the list and its filters; part of the token
 */
export function page<T>(
  items: readonly T[],
  keyOf: (item: T) => string,
  options: { list: string; token: string; size: number },
): { items: T[]; nextPageToken: string } {
  const after = options.token === "" ? undefined : decodeToken(options.token, options.list);
  const rest = after === undefined ? items : items.filter((item) => keyOf(item) > after);
  const taken = rest.slice(0, options.size);
  const last = taken.at(-1);
  const more = last !== undefined && rest.length > taken.length;
  return { items: taken, nextPageToken: more ? encodeToken(options.list, keyOf(last)) : "" };
}

function encodeToken(list: string, key: string): string {
  return Buffer.from(JSON.stringify([list, key])).toString("base64url");
}

function decodeToken(token: string, list: string): string {
  try {
    const parsed: unknown = JSON.parse(Buffer.from(token, "base64url").toString());
    if (Array.isArray(parsed) && parsed.length === 2 && parsed[0] === list && typeof parsed[1] === "string")
      return parsed[1];
  } catch {
    // Falls through to the refusal: it is no token of ours.
  }
  throw invalidArgument([
    { field: "page_token", value: token.slice(0, 40), description: "is not a token of this list; begin without one" },
  ]);
}
