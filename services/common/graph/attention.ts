import { scan } from "./blocks.js";
import type { GraphBuilder, Value } from "./builder.js";
import { at, derive, type Rule } from "./derivatives.js";
import {
  add,
  atLeast,
  concat,
  dimension,
  equal,
  full,
  lowerTriangle,
  matmul,
  max,
  mul,
  neg,
  range,
  reduceSum,
  reshape,
  softmax,
  split,
  sub,
  toInt64,
  transpose,
  upperTriangle,
} from "./ops.js";

/** One block's queries, keys and values, token by token; `heads` is a multiple of `kvHeads`. */
export interface Heads {
  /** Queries [b, t, heads, d], keys and values [b, t, kvHeads, d]; or one with all heads behind each other in that order. */
  readonly parts: readonly Value[];
  readonly heads: number;
  readonly kvHeads: number;
  /** Tokens seen back, the token itself included; 0 for all. */
  readonly window: number;
}

/** Token sequences and who sees whom in them: all that a family need not know of how its blocks are run. */
export interface Sequence {
  /** int64 [b, t] */
  readonly tokens: Value;
  /** int64 [b, t], or [1]: the position of each row's first token. */
  readonly positions: Value;
  /** Longest sequence of tokens; all their positions are below it. */
  readonly length: number;
  /** All positions are below it, those of padding behind the last token included. */
  readonly reach: number;
  /** Scaled dot-product attention (Vaswani et al. 2017) of block `layer` -> [b * t, heads * d]. */
  attend(g: GraphBuilder, heads: Heads, layer: number): Value;
}

/** How far below every other score the scores of masked positions are put; e^-40 is nothing beside 1 in float32. */
const MASK_DEPTH = 40;

/**
 * Softmax of scores whose masked places, -1 in `mask`, are pushed below all others of the batch, by no more than it
 * takes: with a mask of -1e9 their probabilities are denormal numbers, on which a CPU is many times slower.
 */
function maskedSoftmax(g: GraphBuilder, scores: Value, mask: Value): Value {
  const depth = add(g, g.detach(range(g, scores)), g.scalar(MASK_DEPTH));
  return softmax(g, add(g, scores, mul(g, mask, depth)));
}

interface Grouped {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly time: number;
  readonly size: number;
  /** Queries that share keys lie behind each other: [b * kvHeads, group * t, d]. */
  readonly q: Value;
  /** [b * kvHeads, t, d] */
  readonly k: Value;
  readonly v: Value;
}

/** Queries, keys and values apart, [..., heads, d]. */
function apart(g: GraphBuilder, parts: readonly Value[], { heads, kvHeads }: Heads): [Value, Value, Value] {
  const [joint] = parts;
  const all =
    parts.length > 1 || joint === undefined
      ? parts
      : split(g, joint, joint.shape.length - 2, [heads, kvHeads, kvHeads]);
  return all as [Value, Value, Value];
}

/** Grouped-query attention (Ainslie et al. 2023) as plain batched products: keys and values are not repeated. */
function group(g: GraphBuilder, given: Heads): Grouped {
  const [q, k, v] = apart(g, given.parts, given);
  const [batch, time, heads, size] = q.shape as [number, number, number, number];
  const { kvHeads } = given;
  const flat = (x: Value, rows: number): Value =>
    reshape(g, transpose(g, x, [0, 2, 1, 3]), [batch * kvHeads, rows, size]);
  return {
    ...{ batch, heads, kvHeads, time, size },
    ...{ q: flat(q, (heads / kvHeads) * time), k: flat(k, time), v: flat(v, time) },
  };
}

/** Mixed heads in any shape of b, heads, t, d -> rows [b * t, heads * d]. */
function joinHeads(g: GraphBuilder, mixed: Value, { batch, heads, time, size }: Grouped): Value {
  const rows = transpose(g, reshape(g, mixed, [batch, heads, time, size]), [0, 2, 1, 3]);
  return reshape(g, rows, [batch * time, heads * size]);
}

/** A part's gradient by heads [n, t, d], one after the other -> [t, all heads, d]. */
const tokensFirst = (g: GraphBuilder, byHead: readonly Value[]): Value => {
  const [first, ...others] = byHead as [Value, ...Value[]];
  return transpose(g, others.length === 0 ? first : concat(g, byHead, 0), [1, 0, 2]);
};

/**
 * The gradients of rows' parts. With shares p of values v, dp = dm v^T for the gradient dm of what was mixed, and that of
 * the scores is p (dp - sum(dp p)), where the sum is that of dm times what was mixed (Dao et al. 2022).
 */
function rowsRule(heads: Heads): Rule {
  return (g, node, { dy }) => {
    const count = heads.parts.length;
    const [mixed, shares] = [at(node.outputs, 0), at(node.outputs, 1)];
    const alpha = 1 / Math.sqrt(dimension(mixed.shape, -1));
    return scan(g, dimension(mixed.shape, 0), [...node.inputs.slice(0, count), mixed, shares, dy], (b, values) => {
      const [q, k, v] = apart(b, values.slice(0, count), heads);
      const [m, p, dm] = values.slice(count) as [Value, Value, Value];
      const dv = matmul(b, p, dm, { transA: true, batchInB: true });
      const dp = matmul(b, dm, v, { batchInA: true, batchInB: true, transB: true });
      const sums = transpose(b, reduceSum(b, mul(b, dm, m), [-1], true), [1, 0, 2]);
      const ds = mul(b, sub(b, dp, sums), p);
      const dq = matmul(b, ds, k, { batchInB: true, alpha });
      const dk = matmul(b, ds, q, { transA: true, batchInB: true, alpha });
      return count === 1 ? [tokensFirst(b, [dq, dk, dv])] : [dq, dk, dv].map((part) => tokensFirst(b, [part]));
    });
  };
}

/**
 * Attention of one row of the batch after the other: scores and shares of a row stay in the cache, and products read heads
 * where they lie.
 * @param mask [t, t], or one for each row [b, 1, t, t]
 */
function attendRows(g: GraphBuilder, heads: Heads, mask: Value): Value {
  const [batch, time, , size] = at(heads.parts, 0).shape as [number, number, number, number];
  const isShared = mask.shape.length === 2;
  const inputs = [...heads.parts, ...(isShared ? [] : [mask])];
  const [mixed] = scan(g, batch, inputs, (b, values) => {
    const [q, k, v] = apart(b, values.slice(0, heads.parts.length), heads);
    const alpha = 1 / Math.sqrt(size);
    const scores = matmul(b, q, k, { batchInA: true, batchInB: true, transB: true, alpha });
    const shares = maskedSoftmax(b, scores, isShared ? mask : at(values, heads.parts.length));
    return [transpose(b, matmul(b, shares, v, { batchInB: true }), [1, 0, 2]), shares];
  });
  if (mixed === undefined) throw new Error("attention without a result");
  derive(g, mixed, rowsRule(heads));
  return reshape(g, mixed, [batch * time, heads.heads * size]);
}

function attendMasked(g: GraphBuilder, heads: Heads, mask: Value): Value {
  if (heads.heads === heads.kvHeads) return attendRows(g, heads, mask);
  const grouped = group(g, heads);
  const { batch, time, size, q, k, v } = grouped;
  const scores = matmul(g, q, k, { transB: true, alpha: 1 / Math.sqrt(size) });
  const byHead = reshape(g, scores, [batch, grouped.heads, time, time]);
  const shares = reshape(g, maskedSoftmax(g, byHead, mask), scores.shape);
  return joinHeads(g, matmul(g, shares, v), grouped);
}

/** [t, t]: -1 for later tokens and those beyond the window, else 0. */
function causalMask(g: GraphBuilder, time: number, window: number): Value {
  const blocked = full(g, [time, time], -1);
  const later = upperTriangle(g, blocked, 1);
  return window > 0 && window < time ? add(g, later, lowerTriangle(g, blocked, -window)) : later;
}

/** Every token sees itself and what is before it in its row. */
export function causalSequence(g: GraphBuilder, tokens: Value): Sequence {
  const time = dimension(tokens.shape, 1);
  return {
    tokens,
    positions: g.ints([0]),
    length: time,
    reach: time,
    attend: (graph, heads) => attendMasked(graph, heads, causalMask(graph, time, heads.window)),
  };
}

/**
 * Several documents in a row (Krell et al. 2021): a token sees only its own document, and positions begin again in each.
 * @param segments int64 [b, t]: equal for tokens of one document, which lie side by side
 */
function packedSequence(g: GraphBuilder, tokens: Value, segments: Value): Sequence {
  const [batch, time] = [dimension(tokens.shape, 0), dimension(tokens.shape, 1)];
  const same = equal(g, reshape(g, segments, [batch, time, 1]), reshape(g, segments, [batch, 1, time]));
  const before = lowerTriangle(g, same, 0);
  // Of its document a token sees itself and all that is before it: their number is its position, and one.
  const positions = toInt64(g, sub(g, reduceSum(g, before, [2]), g.scalar(1)));
  const mask = (window: number): Value => {
    const seen = window > 0 && window < time ? upperTriangle(g, before, 1 - window) : before;
    return reshape(g, sub(g, seen, g.scalar(1)), [batch, 1, time, time]);
  };
  return {
    tokens,
    positions: g.detach(positions),
    length: time,
    reach: time,
    attend: (graph, heads) => attendMasked(graph, heads, mask(heads.window)),
  };
}

/** Rows of one document each, or of several where `segments` tells them apart. */
export function rowSequence(g: GraphBuilder, tokens: Value, segments: Value | undefined): Sequence {
  return segments === undefined ? causalSequence(g, tokens) : packedSequence(g, tokens, segments);
}

/** Keys and values of earlier tokens, [kvHeads, capacity, d] for each block. */
export interface Cache {
  /** int64 [1]: how many of the places are filled, from the first. */
  readonly filled: Value;
  readonly capacity: number;
  /** The cached keys and values of a block of that shape. */
  past(layer: number, shape: readonly [number, number, number]): { k: Value; v: Value };
  /** Takes the block's new keys and values [kvHeads, n, d], which belong behind the filled places. */
  store(layer: number, k: Value, v: Value): void;
}

/** [n, capacity]: -1 for places that are not filled or beyond the window. */
function pastMask(g: GraphBuilder, { filled, capacity }: Cache, count: number, window: number): Value {
  const arange = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
  const places = g.constant("int64", [1, capacity], arange(capacity));
  const empty = neg(g, atLeast(g, places, filled));
  if (window === 0 || window >= capacity) return add(g, full(g, [count, 1], 0), empty);
  const row = add(g, g.constant("int64", [count, 1], arange(count)), filled);
  const gone = atLeast(g, sub(g, row, places), g.constant("int64", [], [window]));
  return max(g, sub(g, empty, gone), g.scalar(-1));
}

/** Tokens [1, n] that follow those of a cache: they see it, and what is before them. */
export function cachedSequence(g: GraphBuilder, tokens: Value, cache: Cache): Sequence {
  const count = dimension(tokens.shape, 1);
  const attend = (graph: GraphBuilder, heads: Heads, layer: number): Value => {
    const grouped = group(graph, heads);
    const { kvHeads, size, q, k, v } = grouped;
    const past = cache.past(layer, [kvHeads, cache.capacity, size]);
    cache.store(layer, k, v);
    const alpha = 1 / Math.sqrt(size);
    const scores = [past.k, k].map((keys) => matmul(graph, q, keys, { transB: true, alpha }));
    const all = concat(graph, scores, 2);
    const mask = concat(
      graph,
      [pastMask(graph, cache, count, heads.window), causalMask(graph, count, heads.window)],
      1,
    );
    const shares = maskedSoftmax(graph, reshape(graph, all, [grouped.heads, count, dimension(all.shape, 2)]), mask);
    const [old, recent] = split(graph, reshape(graph, shares, all.shape), 2, [cache.capacity, count]) as [Value, Value];
    return joinHeads(graph, add(graph, matmul(graph, old, past.v), matmul(graph, recent, v)), grouped);
  };
  return { tokens, positions: cache.filled, length: cache.capacity, reach: cache.capacity + count - 1, attend };
}
