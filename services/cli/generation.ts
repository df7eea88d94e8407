import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { generateCached, type SamplingOptions } from "#agent/backend/generate.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { openTokenizer, type Tokenizer } from "#agent/data/tokenizers.js";
import { SHOAL_TOKENIZER, TOKENIZER } from "#common/domain/model-files.js";
import { createRng } from "#common/domain/rng.js";
import { buildDecodeGraph } from "#common/graph/logits.js";
import { z } from "zod";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { CliError, EXIT } from "./exit.js";
import { readModelFolder } from "./model-folder.js";

export interface GenerateOptions {
  readonly prompt: string;
  readonly tokens: number;
  readonly temperature: number;
  readonly topK: number;
  /** 1 if absent: all tokens. */
  readonly topP?: number;
  readonly seed: number;
  readonly threads: number;
}

/** A checkpoint folder and how its model reads text. */
export interface Source {
  readonly directory: string;
  readonly tokenizer: Tokenizer;
}

/** The tokenizer a spec names, with the folder's tokenizer.json where it needs one. */
export function tokenizerOf(spec: TokenizerSpec, directory: string): Tokenizer {
  const path = join(directory, TOKENIZER);
  const opened = openTokenizer(spec, existsSync(path) ? readFileSync(path) : undefined);
  if (!opened.ok) throw new CliError(opened.problem, EXIT.invalid);
  return opened.tokenizer;
}

const describedTokenizer = z.union([
  z.object({ kind: z.literal("bytes") }),
  z.object({ kind: z.literal("chars"), chars: z.string() }),
]);

/** What an exported folder says of its tokenizer: tokenizer.json, else shoal_tokenizer.json, else bytes. */
function describedIn(directory: string): TokenizerSpec {
  if (existsSync(join(directory, TOKENIZER))) return TokenizerSpec.fromPartial({ kind: "huggingface" });
  const path = join(directory, SHOAL_TOKENIZER);
  if (!existsSync(path)) return TokenizerSpec.fromPartial({ kind: "bytes" });
  try {
    return TokenizerSpec.fromPartial(describedTokenizer.parse(JSON.parse(readFileSync(path, "utf8"))));
  } catch {
    throw new CliError(`${path} does not describe a tokenizer of kind "bytes" or "chars"`, EXIT.invalid);
  }
}

/** A checkpoint folder with its own tokenizer. */
export function folderSource(directory: string): Source {
  return { directory, tokenizer: tokenizerOf(describedIn(directory), directory) };
}

/**
 * Config and weights of a source's folder.
 * @throws CliError (invalid) for a folder without a usable model, and for a tokenizer with more tokens than it
 */
export function readSource({ directory, tokenizer }: Source): ReturnType<typeof readModelFolder> {
  const read = readModelFolder(directory);
  const { vocabSize } = read.config;
  if (tokenizer.vocabulary <= vocabSize) return read;
  const found = [TOKENIZER, SHOAL_TOKENIZER].map((name) => join(directory, name)).find((path) => existsSync(path));
  const counts = `${tokenizer.vocabulary} tokens, the model ${vocabSize}`;
  const what =
    found === undefined
      ? `${directory} has no ${TOKENIZER}, and bytes, which are read instead, are ${counts}: put the model's own there`
      : `${found} is not of this model: it has ${counts}; put the model's own there`;
  throw new CliError(what, EXIT.invalid);
}

/** Gives out text as soon as its characters are complete, though a character may take several tokens. */
export async function* textOf(
  tokens: AsyncIterable<number>,
  decode: (tokens: readonly number[]) => string,
): AsyncGenerator<string, void, undefined> {
  const seen: number[] = [];
  let given = 0;
  for await (const token of tokens) {
    seen.push(token);
    const text = decode(seen);
    // U+FFFD at the end is a character that is not complete yet.
    const complete = text.replace(/\uFFFD+$/, "");
    if (complete.length <= given) continue;
    yield complete.slice(given);
    given = complete.length;
  }
  const rest = decode(seen).slice(given);
  if (rest !== "") yield rest;
}

/**
 * Continues a prompt with the checkpoint in a folder.
 * @throws CliError (invalid) for a checkpoint that cannot be used
 */
export async function* generateText(source: Source, options: GenerateOptions): AsyncGenerator<string, void, undefined> {
  const { config, weights } = readSource(source);
  const prompt = [...source.tokenizer.encode(options.prompt)];
  if (prompt.length === 0) throw new CliError("the prompt has no token of this model: give another one", EXIT.usage);
  const backend = await openOnnxBackend({ threads: options.threads });
  // No longer than needed: keys and values of all places are kept, and read at every token.
  const capacity = Math.min(config.contextLength, prompt.length + options.tokens);
  const session = await backend.decode(buildDecodeGraph(config, { capacity }));
  try {
    const { tokens: count, temperature, topK, topP = 1 } = options;
    const sampling: SamplingOptions = { count, temperature, topK, topP };
    const tokens = generateCached(session, weights, prompt, sampling, createRng(options.seed));
    yield* textOf(tokens, (all) => source.tokenizer.decode(all));
  } finally {
    await session.dispose();
  }
}

/** Continues a prompt with the checkpoint in a folder whose tokenizer is its own or bytes. */
export function generateFromFolder(
  directory: string,
  options: GenerateOptions,
): AsyncGenerator<string, void, undefined> {
  return generateText(folderSource(directory), options);
}
