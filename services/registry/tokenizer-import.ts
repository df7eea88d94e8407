import type { Violation as FieldViolation } from "#common/graph/config.js";
import { SHOAL_TOKENIZER, TOKENIZER } from "#common/domain/model-files.js";

const BYTE_TOKENS = 256;

/** How an imported model reads text. */
export type ImportedTokenizer =
  | { readonly kind: "bytes" }
  | { readonly kind: "chars"; readonly chars: string }
  | { readonly kind: "huggingface"; readonly json: Uint8Array };

export type TokenizerVerdict = { ok: true; tokenizer: ImportedTokenizer } | { ok: false; violation: FieldViolation };

/** The files of a folder that may say how text is read. */
export interface TokenizerFiles {
  /** tokenizer.json */
  readonly json: Uint8Array | undefined;
  /** shoal_tokenizer.json */
  readonly described: Uint8Array | undefined;
}

const refuse = (field: string, value: unknown, description: string): TokenizerVerdict => ({
  ok: false,
  violation: { field, value, description },
});

function parse(json: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json)) as unknown;
  } catch {
    return undefined;
  }
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function readHuggingFace(json: Uint8Array, vocabSize: number): TokenizerVerdict {
  const tokenizer = parse(json);
  const model = isRecord(tokenizer) ? tokenizer["model"] : undefined;
  if (!isRecord(tokenizer) || !isRecord(model)) {
    return refuse(TOKENIZER, undefined, "is no tokenizer of Hugging Face's tokenizers library");
  }
  const listed = model["vocab"];
  const ids = isRecord(listed) ? Object.values(listed) : Array.isArray(listed) ? listed.map((_, id) => id) : [];
  const added = Array.isArray(tokenizer["added_tokens"]) ? tokenizer["added_tokens"] : [];
  const all = [...ids, ...added.map((token: unknown) => (isRecord(token) ? token["id"] : undefined))];
  // A token beyond the table of tokens would read another's weights, or none.
  const bad = all.find((id) => typeof id !== "number" || !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (all.length === 0) return refuse(TOKENIZER, undefined, "has no vocabulary");
  if (bad !== undefined) {
    return refuse(TOKENIZER, bad, `has a token outside the model's vocabulary of ${vocabSize}`);
  }
  return { ok: true, tokenizer: { kind: "huggingface", json } };
}

function readBytes(vocabSize: number): TokenizerVerdict {
  if (vocabSize >= BYTE_TOKENS) return { ok: true, tokenizer: { kind: "bytes" } };
  const description = `is below the ${BYTE_TOKENS} tokens of tokenizer "bytes": send tokenizer.json`;
  return refuse("vocab_size", vocabSize, description);
}

function readDescribed(bytes: Uint8Array, vocabSize: number): TokenizerVerdict {
  const json = parse(bytes);
  const kind = isRecord(json) ? json["kind"] : undefined;
  if (kind === "bytes") return readBytes(vocabSize);
  const chars = isRecord(json) ? json["chars"] : undefined;
  if (kind !== "chars" || typeof chars !== "string") {
    return refuse(SHOAL_TOKENIZER, kind, 'must be {"kind":"bytes"} or {"kind":"chars","chars":"..."}');
  }
  const letters = Array.from(chars);
  if (new Set(letters).size !== letters.length) {
    return refuse(SHOAL_TOKENIZER, chars, "holds a character more than once: name each once");
  }
  if (letters.length !== vocabSize) {
    return refuse(
      SHOAL_TOKENIZER,
      letters.length,
      `must name as many characters as the model has tokens, ${vocabSize}`,
    );
  }
  return { ok: true, tokenizer: { kind: "chars", chars } };
}

/** What the folder's files make of the asked kind: tokenizer.json goes first, then shoal_tokenizer.json, then bytes. */
export function readTokenizer(kind: string, { json, described }: TokenizerFiles, vocabSize: number): TokenizerVerdict {
  if (json !== undefined) {
    if (kind !== "" && kind !== "huggingface") {
      return refuse(TOKENIZER, undefined, `is not used by tokenizer_kind "${kind}": leave it out`);
    }
    return readHuggingFace(json, vocabSize);
  }
  if (kind === "huggingface") return refuse(TOKENIZER, undefined, 'is missing: tokenizer_kind is "huggingface"');
  if (described === undefined) {
    if (kind === "chars") return refuse(SHOAL_TOKENIZER, undefined, 'is missing: tokenizer_kind is "chars"');
    return readBytes(vocabSize);
  }
  const read = readDescribed(described, vocabSize);
  if (!read.ok || kind === "" || read.tokenizer.kind === kind) return read;
  return refuse(SHOAL_TOKENIZER, read.tokenizer.kind, `is not of the tokenizer_kind "${kind}"`);
}
