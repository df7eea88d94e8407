/** JSON from strangers, or what is wrong with it, as the end of a sentence about the file. */
export type ReadJson = { readonly ok: true; readonly value: unknown } | { readonly ok: false; readonly reason: string };

const MAX_DEPTH = 64;
/** Bytes that each list or object takes on average, at least: parsed, an empty one takes many times its two brackets. */
const BYTES_PER_CONTAINER = 8;
const FREE_CONTAINERS = 256;

const [QUOTE, BACKSLASH] = [0x22, 0x5c];
const OPENING = new Set([0x5b, 0x7b]);
const CLOSING = new Set([0x5d, 0x7d]);

/** Goes over the bytes once before anything is made of them. */
function judgeStructure(bytes: Uint8Array): string | undefined {
  let [depth, containers, inText] = [0, 0, false];
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] as number;
    if (inText) {
      if (byte === BACKSLASH) i++;
      else if (byte === QUOTE) inText = false;
    } else if (byte === QUOTE) inText = true;
    else if (OPENING.has(byte)) {
      depth++;
      containers++;
      if (depth > MAX_DEPTH) return `is nested deeper than ${MAX_DEPTH}`;
    } else if (CLOSING.has(byte)) depth--;
  }
  const most = FREE_CONTAINERS + bytes.length / BYTES_PER_CONTAINER;
  return containers > most ? `has ${containers} lists and objects in ${bytes.length} bytes` : undefined;
}

/**
 * Parses JSON in UTF-8 without letting it take more memory than a small multiple of its bytes.
 * @param maxBytes what a file of its kind has at most
 */
export function readJson(bytes: Uint8Array, maxBytes: number): ReadJson {
  if (bytes.length > maxBytes) return { ok: false, reason: `has ${bytes.length} bytes, at most ${maxBytes} are read` };
  const problem = judgeStructure(bytes);
  if (problem !== undefined) return { ok: false, reason: problem };
  try {
    return { ok: true, value: JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as unknown };
  } catch {
    return { ok: false, reason: "is not JSON in UTF-8" };
  }
}
