import { readJson } from "#common/graph/json.js";

/**
 * A tokenizer.json comes from strangers and is run by a library on every text, so it is judged before: what it may hold,
 * how large its parts are, and that none of them makes texts grow or search for ever. Everything is named by its path.
 */

/** 64 MiB; published ones take up to 35 MB. */
const MAX_BYTES = 64 * 1024 * 1024;
/** As many tokens as a model can have. */
const MAX_ID = 1_000_000;
const MAX_TOKEN_LENGTH = 1024;
const MAX_DEPTH = 12;
const MAX_PARTS = 4096;
/** Longest text that a rule puts in the place of another. */
const MAX_REPLACEMENT = 64;
/** Times that all replacements together may lengthen a text. */
const MAX_GROWTH = 64;
const MAX_PATTERN = 4096;
/** Unbounded repetitions one after the other: searching takes time by that power of a text's length. */
const MAX_REPETITIONS = 3;
/** A bounded repetition beyond it is as bad as an unbounded one. */
const MANY = 8;
/** Optional parts and alternatives one after the other: searching takes time by the product of their numbers of ways. */
const MAX_WAYS = 256;
const COMPONENTS = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];

class Refusal extends Error {}

type Fields = Readonly<Record<string, unknown>>;
const isRecord = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isId = (value: unknown): boolean =>
  Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_ID;
const isToken = (value: unknown): value is string => typeof value === "string" && value.length <= MAX_TOKEN_LENGTH;
const short = (text: string): string => (text.length > 40 ? `${text.slice(0, 40)}...` : text);

/** The tokens of a model: an object of ids, or a list of tokens with their scores. */
function judgeVocabulary(vocab: unknown): Set<string> {
  if (Array.isArray(vocab)) {
    const tokens = new Set<string>();
    vocab.forEach((entry: unknown, i) => {
      if (!Array.isArray(entry) || !isToken(entry[0]) || typeof entry[1] !== "number") {
        throw new Refusal(`model.vocab[${i}] is not a token of at most ${MAX_TOKEN_LENGTH} characters with a score`);
      }
      tokens.add(entry[0]);
    });
    return tokens;
  }
  if (!isRecord(vocab)) throw new Refusal("model.vocab is missing");
  const names = Object.keys(vocab);
  for (const token of names) {
    if (token.length > MAX_TOKEN_LENGTH) throw new Refusal(`model.vocab has a token of ${token.length} characters`);
    if (!isId(vocab[token]))
      throw new Refusal(`model.vocab: the id of "${short(token)}" is not a number up to ${MAX_ID}`);
  }
  return new Set(names);
}

/** Both halves of a merge and what they give must be tokens: merging then ends, and ends in tokens. */
function judgeMerges(model: Fields, tokens: ReadonlySet<string>): void {
  const { merges = [], continuing_subword_prefix: given } = model;
  const prefix = typeof given === "string" ? given : "";
  if (!Array.isArray(merges)) throw new Refusal("model.merges is not a list");
  const form = typeof merges[0];
  merges.forEach((merge: unknown, i) => {
    if (typeof merge !== form) throw new Refusal(`model.merges[${i}] is not written as the first one is`);
    const pair: unknown = typeof merge === "string" ? merge.split(" ") : merge;
    const [left, right] = (Array.isArray(pair) && pair.length === 2 ? pair : []) as unknown[];
    if (typeof left !== "string" || typeof right !== "string")
      throw new Refusal(`model.merges[${i}] is not a pair of tokens`);
    const joined = left + (right.startsWith(prefix) ? right.slice(prefix.length) : right);
    for (const token of [left, right, joined]) {
      if (!tokens.has(token)) throw new Refusal(`model.merges[${i}]: "${short(token)}" is not in the vocabulary`);
    }
  });
}

function judgeAdded(added: unknown): void {
  if (added === undefined || added === null) return;
  if (!Array.isArray(added)) throw new Refusal("added_tokens is not a list");
  added.forEach((token: unknown, i) => {
    if (!isRecord(token) || !isToken(token["content"]) || token["content"] === "" || !isId(token["id"])) {
      throw new Refusal(
        `added_tokens[${i}] has no content of 1 to ${MAX_TOKEN_LENGTH} characters, or no id up to ${MAX_ID}`,
      );
    }
  });
}

const QUANTIFIER = /^(?:[*+?]|\{(\d+)(?:(,)(\d*))?\})/;

/** How often the quantifier that a text begins with repeats: its length, its least and its most. */
function quantifierAt(text: string): { length: number; least: number; most: number } | undefined {
  const found = QUANTIFIER.exec(text);
  if (found === null) return undefined;
  const [whole, least, comma, most] = found;
  if (least === undefined) return { length: 1, least: whole === "+" ? 1 : 0, most: whole === "?" ? 1 : Infinity };
  const top = comma === undefined ? Number(least) : most === "" ? Infinity : Number(most);
  return { length: whole.length, least: Number(least), most: top };
}

/** Where a character class ends that begins at `from`. */
function classEnd(source: string, from: number): number {
  let i = from + 1;
  // A bracket in the first place stands for itself.
  if (source[i] === "^") i++;
  for (i++; i < source.length && source[i] !== "]"; i++) if (source[i] === "\\") i++;
  return i;
}

/** In how many ways a part of a pattern can be matched, its unbounded repetitions aside. */
interface Effort {
  readonly ways: number;
  readonly repetitions: number;
}

const FIXED: Effort = { ways: 1, repetitions: 0 };

/** A group up to some place: the alternatives that have ended, and the one that has not. */
interface OpenGroup {
  ended: Effort;
  current: Effort;
}

const inTurn = (a: Effort, b: Effort): Effort => {
  return { ways: a.ways * b.ways, repetitions: a.repetitions + b.repetitions };
};
const either = (a: Effort, b: Effort): Effort => {
  return { ways: a.ways + b.ways, repetitions: Math.max(a.repetitions, b.repetitions) };
};

/** A part repeated; or what is wrong with repeating it. */
function repeated(piece: Effort, least: number, most: number): Effort | string {
  if (most > MANY) {
    if (piece.ways > 1 || piece.repetitions > 0) return "repeats a group that can itself be matched in many ways";
    if (most > MAX_PATTERN && most !== Infinity) return `repeats ${most} times`;
    return { ways: 1, repetitions: most > least ? 1 : 0 };
  }
  return { ways: piece.ways ** most * (Math.max(0, most - least) + 1), repetitions: piece.repetitions * most };
}

/** Escapes with braces, which are no quantifiers. */
const BRACED = /^\\(?:u|[pP])\{[\w=]+\}/;

/**
 * What could make a regular expression search for ever: back references, repeated groups that are not of one piece
 * (`(a+)+`, `(aa?)+`, `(a|a)*`), which can be tried in exponentially many ways, and many parts in a row each of which can
 * be tried in several. Those of published tokenizers have none of them.
 */
export function judgePattern(source: string): string | undefined {
  if (source.length > MAX_PATTERN) return `has ${source.length} characters, at most ${MAX_PATTERN}`;
  const open: OpenGroup[] = [{ ended: { ways: 0, repetitions: 0 }, current: FIXED }];
  for (let i = 0; i < source.length; i++) {
    const group = open[open.length - 1] as OpenGroup;
    const character = source[i];
    let piece = FIXED;
    if (character === "\\") {
      if (/[1-9k]/.test(source[i + 1] ?? "")) return "has a reference back";
      i += (BRACED.exec(source.slice(i, i + 64))?.[0].length ?? 2) - 1;
    } else if (character === "[") i = classEnd(source, i);
    else if (character === "(") {
      open.push({ ended: { ways: 0, repetitions: 0 }, current: FIXED });
      if (source[i + 1] === "?") i++;
      continue;
    } else if (character === "|") {
      group.ended = either(group.ended, group.current);
      group.current = FIXED;
      continue;
    } else if (character === ")" && open.length > 1) {
      open.pop();
      piece = either(group.ended, group.current);
    }
    const around = open[open.length - 1] as OpenGroup;
    const quantifier = quantifierAt(source.slice(i + 1, i + 24));
    if (quantifier !== undefined) {
      const result = repeated(piece, quantifier.least, quantifier.most);
      if (typeof result === "string") return result;
      piece = result;
      i += quantifier.length;
    }
    around.current = inTurn(around.current, piece);
    if (around.current.repetitions > MAX_REPETITIONS) return `has more than ${MAX_REPETITIONS} repetitions in a row`;
    if (around.current.ways > MAX_WAYS) return "has too many optional parts or alternatives in a row";
  }
  return undefined;
}

function judgeReplacement(part: Fields, path: string): number {
  const { pattern, content } = part;
  let replaced = 1;
  if (pattern !== undefined) {
    const { Regex: source, String: literal } = isRecord(pattern) ? pattern : {};
    if (typeof source === "string") {
      const problem = judgePattern(source);
      if (problem !== undefined) throw new Refusal(`${path}.pattern ${problem}`);
    } else if (typeof literal !== "string" || literal === "") {
      throw new Refusal(`${path}.pattern has neither a Regex nor a String`);
    } else replaced = literal.length;
  }
  for (const name of ["content", "prepend", "replacement", "prefix", "suffix"]) {
    const text = part[name];
    if (typeof text === "string" && text.length > MAX_REPLACEMENT) {
      throw new Refusal(`${path}.${name} has ${text.length} characters, at most ${MAX_REPLACEMENT}`);
    }
  }
  return typeof content === "string" ? Math.max(1, content.length / replaced) : 1;
}

/** Normalizer, pre-tokenizer, post-processor and decoder, whose parts may hold further parts. */
function judgeComponent(name: string, component: unknown): void {
  const left: [unknown, string, number][] = [[component, name, 1]];
  let [parts, growth] = [0, 1];
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const [part, path, depth] = next;
    if (typeof part !== "object" || part === null) continue;
    if (depth > MAX_DEPTH || ++parts > MAX_PARTS) throw new Refusal(`${name} is nested too deep or has too many parts`);
    if (isRecord(part)) growth *= judgeReplacement(part, path);
    if (growth > MAX_GROWTH) throw new Refusal(`${path} makes texts more than ${MAX_GROWTH} times longer`);
    for (const [key, value] of Object.entries(part)) left.push([value, `${path}.${short(key)}`, depth + 1]);
  }
}

function judge(json: unknown): void {
  if (!isRecord(json)) throw new Refusal("it is not a JSON object");
  const { model } = json;
  if (!isRecord(model)) throw new Refusal("model is missing");
  judgeMerges(model, judgeVocabulary(model["vocab"]));
  judgeAdded(json["added_tokens"]);
  for (const name of COMPONENTS) judgeComponent(name, json[name]);
}

/** A tokenizer.json that has been judged. */
export interface TokenizerJson {
  readonly model: Fields;
}

export type ReadTokenizer =
  { readonly ok: true; readonly json: TokenizerJson } | { readonly ok: false; readonly problem: string };

/** Reads a tokenizer.json that can be given to a library, or says where it cannot. */
export function readTokenizerFile(bytes: Uint8Array): ReadTokenizer {
  const read = readJson(bytes, MAX_BYTES);
  if (!read.ok) return { ok: false, problem: read.reason };
  try {
    judge(read.value);
  } catch (error) {
    if (error instanceof Refusal) return { ok: false, problem: error.message };
    throw error;
  }
  return { ok: true, json: read.value as TokenizerJson };
}
