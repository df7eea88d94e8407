import type { Tokenizer } from "./tokenizers.js";

/** A device's tokens: what it trains on, and what it only ever evaluates on. */
export interface Shard {
  readonly train: Int32Array;
  readonly heldOut: Int32Array;
  /** First token of each document in `train`, in order; a separator belongs to the document before it. */
  readonly starts: Int32Array;
}

interface Stream {
  readonly tokens: Int32Array;
  readonly starts: Int32Array;
}

/** Documents one after the other with a separator in between. */
function join(parts: readonly Int32Array[], separator: Int32Array): Stream {
  const filled = parts.filter((part) => part.length > 0);
  const gaps = Math.max(0, filled.length - 1) * separator.length;
  const stream = new Int32Array(filled.reduce((sum, part) => sum + part.length, gaps));
  const starts = new Int32Array(filled.length);
  let at = 0;
  for (const [i, part] of filled.entries()) {
    if (i > 0) {
      stream.set(separator, at);
      at += separator.length;
    }
    starts[i] = at;
    stream.set(part, at);
    at += part.length;
  }
  return { tokens: stream, starts };
}

/** Number of a document's tokens that are held out: the rounded-down share. */
export function heldOutTokens(tokens: number, fraction: number): number {
  return Math.floor(tokens * fraction);
}

/**
 * Tokenizes documents and holds out the last share of each one. The same documents always split the same way, whatever
 * is added beside them, so what was held out once never trains.
 */
export function splitDocuments(texts: readonly string[], tokenizer: Tokenizer, heldOutFraction: number): Shard {
  const train: Int32Array[] = [];
  const heldOut: Int32Array[] = [];
  for (const text of texts) {
    const tokens = tokenizer.encode(text);
    const cut = tokens.length - heldOutTokens(tokens.length, heldOutFraction);
    train.push(tokens.subarray(0, cut));
    heldOut.push(tokens.subarray(cut));
  }
  const { tokens, starts } = join(train, tokenizer.separator);
  return { train: tokens, starts, heldOut: join(heldOut, tokenizer.separator).tokens };
}
