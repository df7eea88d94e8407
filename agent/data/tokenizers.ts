import { Tokenizer as NativeTokenizer } from "@huggingface/tokenizers";
import type { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { readTokenizerFile, type TokenizerJson } from "./tokenizer-file.js";

/** Text to tokens and back. */
export interface Tokenizer {
  /** Number of tokens; all are below it. */
  readonly vocabulary: number;
  encode(text: string): Int32Array;
  decode(tokens: readonly number[]): string;
  /** Put between two documents; empty if the vocabulary has nothing for it. */
  readonly separator: Int32Array;
}

export type OpenedTokenizer = { ok: true; tokenizer: Tokenizer } | { ok: false; problem: string };

/** UTF-8 bytes; 256 tokens. */
const bytesTokenizer: Tokenizer = {
  vocabulary: 256,
  encode: (text) => Int32Array.from(new TextEncoder().encode(text)),
  decode: (tokens) => new TextDecoder().decode(Uint8Array.from(tokens)),
  separator: Int32Array.of(10),
};

/** One token a code point of the alphabet, in its order; other characters are skipped. */
function charsTokenizer(alphabet: string): Tokenizer {
  const characters = Array.from(alphabet);
  const tokenOf = new Map(characters.map((character, token) => [character, token]));
  const encode = (text: string): Int32Array => {
    const tokens = new Int32Array(text.length);
    let length = 0;
    for (const character of text) {
      const token = tokenOf.get(character);
      if (token !== undefined) tokens[length++] = token;
    }
    return tokens.slice(0, length);
  };
  return {
    vocabulary: characters.length,
    encode,
    decode: (tokens) => tokens.map((token) => characters[token] ?? "").join(""),
    separator: encode("\n"),
  };
}

/** End-of-text tokens of common families, in order of preference. */
const END_TOKENS = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>"];

/** The part used here; the package's own declarations do not resolve under Node's module rules. */
interface HuggingFace {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: (number | undefined)[] };
  decode(tokens: number[], options: { skip_special_tokens: boolean }): string;
  token_to_id(token: string): number | undefined;
  get_vocab(withAddedTokens: boolean): Map<string, number>;
}

const HuggingFaceTokenizer = NativeTokenizer as unknown as new (json: object, config: object) => HuggingFace;

function huggingFaceTokenizer(json: TokenizerJson): Tokenizer {
  const tokenizer = new HuggingFaceTokenizer(json, {});
  const { unk_token: unknownToken } = json.model;
  const unknown = typeof unknownToken === "string" ? tokenizer.token_to_id(unknownToken) : undefined;
  const end = END_TOKENS.map((token) => tokenizer.token_to_id(token)).find((id) => id !== undefined);
  let highest = -1;
  for (const id of tokenizer.get_vocab(true).values()) highest = Math.max(highest, id);
  return {
    vocabulary: highest + 1,
    encode: (text) => {
      const { ids } = tokenizer.encode(text, { add_special_tokens: false });
      // The library gives nothing for words without a token: they are the unknown one, or left out where there is none.
      return Int32Array.from(ids.map((id) => id ?? unknown).filter((id) => id !== undefined));
    },
    // The library refuses to decode nothing.
    decode: (tokens) => (tokens.length === 0 ? "" : tokenizer.decode([...tokens], { skip_special_tokens: true })),
    separator: end === undefined ? new Int32Array(0) : Int32Array.of(end),
  };
}

const PROBE = "Hello,  world 42!\n\tÆß 漢字 🙂 'tis\u0000";

/** Encodes and decodes a line: what is wrong with a tokenizer shows when it is opened, not in the middle of training. */
function probe(tokenizer: Tokenizer): void {
  const bad = tokenizer.encode(PROBE).find((id) => id < 0 || id >= tokenizer.vocabulary);
  if (bad !== undefined) throw new RangeError(`it gives the token ${bad} of ${tokenizer.vocabulary}`);
  tokenizer.decode([...tokenizer.encode(PROBE)]);
}

function openHuggingFace(blob: Uint8Array | undefined): OpenedTokenizer {
  if (blob === undefined)
    return { ok: false, problem: 'tokenizer "huggingface" needs a tokenizer.json in tokenizer.blob' };
  const read = readTokenizerFile(blob);
  if (!read.ok) return { ok: false, problem: `tokenizer.json cannot be used: ${read.problem}` };
  try {
    const tokenizer = huggingFaceTokenizer(read.json);
    probe(tokenizer);
    return { ok: true, tokenizer };
  } catch (error) {
    const cause = error instanceof Error ? error.message : String(error);
    return { ok: false, problem: `tokenizer.json cannot be used: ${cause.slice(0, 200)}` };
  }
}

/** @param blob content of tokenizer.json, for kind "huggingface" */
export function openTokenizer(spec: TokenizerSpec | undefined, blob?: Uint8Array): OpenedTokenizer {
  switch (spec?.kind) {
    case "bytes":
      return { ok: true, tokenizer: bytesTokenizer };
    case "chars":
      if (new Set(spec.chars).size !== Array.from(spec.chars).length || spec.chars === "") {
        return { ok: false, problem: "tokenizer.chars must name at least one character and none twice" };
      }
      return { ok: true, tokenizer: charsTokenizer(spec.chars) };
    case "huggingface":
      return openHuggingFace(blob);
    default:
      return {
        ok: false,
        problem: `tokenizer "${spec?.kind ?? ""}" is not known to this agent; it knows bytes, chars and huggingface`,
      };
  }
}
