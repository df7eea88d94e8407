import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { generateTokens, type SamplingOptions } from "#agent/backend/generate.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { openTokenizer, type Tokenizer } from "#agent/data/tokenizers.js";
import { createRng } from "#common/domain/rng.js";
import { importCheckpoint } from "#common/graph/checkpoint.js";
import { buildLogitsGraph } from "#common/graph/logits.js";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { realNumber, wholeNumber } from "../arguments.js";
import { call, type Clients } from "../calls.js";
import { CliError, EXIT } from "../exit.js";
import { exportModel } from "../folders.js";
import { writeJson } from "../io.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

export interface GenerateOptions {
  readonly prompt: string;
  readonly tokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly seed: number;
  readonly threads: number;
}

interface Source {
  readonly directory: string;
  readonly tokenizer: Tokenizer;
}

function tokenizerOf(spec: TokenizerSpec, directory: string): Tokenizer {
  const path = join(directory, "tokenizer.json");
  const opened = openTokenizer(spec, existsSync(path) ? readFileSync(path) : undefined);
  if (!opened.ok) throw new CliError(opened.problem, EXIT.invalid);
  return opened.tokenizer;
}

/** A folder's tokenizer: its tokenizer.json, else bytes. */
function folderSource(directory: string): Source {
  const kind = existsSync(join(directory, "tokenizer.json")) ? "huggingface" : "bytes";
  return { directory, tokenizer: tokenizerOf(TokenizerSpec.fromPartial({ kind }), directory) };
}

async function remoteSource(clients: Clients, name: string, directory: string): Promise<Source> {
  const { model } = await call(clients.models.getModel.bind(clients.models), { name });
  await exportModel(clients, name, directory);
  return { directory, tokenizer: tokenizerOf(model?.tokenizer ?? TokenizerSpec.fromPartial({}), directory) };
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
  const checkpoint = importCheckpoint(
    readFileSync(join(source.directory, "config.json")),
    readFileSync(join(source.directory, "model.safetensors")),
  );
  if (!checkpoint.ok) {
    const list = checkpoint.violations.map(({ field, description }) => `${field} ${description}`).join("; ");
    throw new CliError(`${source.directory} holds no model that can be used: ${list}`, EXIT.invalid);
  }
  const prompt = [...source.tokenizer.encode(options.prompt)];
  if (prompt.length === 0) throw new CliError("the prompt has no token of this model: give another one", EXIT.usage);
  const backend = await openOnnxBackend({ threads: options.threads });
  const graph = buildLogitsGraph(checkpoint.config, { seqLen: checkpoint.config.contextLength });
  const session = await backend.logits(graph);
  try {
    const sampling: SamplingOptions = { count: options.tokens, temperature: options.temperature, topK: options.topK };
    const tokens = generateTokens(session, checkpoint.weights, prompt, sampling, createRng(options.seed));
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

async function write(shell: Shell, source: Source, options: GenerateOptions & RemoteOptions): Promise<void> {
  const { io } = shell;
  let text = "";
  if (options.json !== true) io.out(options.prompt);
  for await (const piece of generateText(source, options)) {
    text += piece;
    if (options.json !== true) io.out(piece);
    if (shell.signal.aborted) break;
  }
  if (options.json === true) writeJson(io, { prompt: options.prompt, text });
  else io.out("\n");
}

async function generate(shell: Shell, model: string, options: GenerateOptions & RemoteOptions): Promise<void> {
  if (statSync(model, { throwIfNoEntry: false })?.isDirectory() === true) {
    await write(shell, folderSource(model), options);
    return;
  }
  const directory = mkdtempSync(join(tmpdir(), "shoal-model-"));
  try {
    const source = await withClients(shell, options, (clients) => remoteSource(clients, model, directory));
    await write(shell, source, options);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

export const generateCommands: CommandGroup = (program, shell) => {
  takesRemote(
    program.command("generate <model>").description("continue a prompt with a model, or with a Hugging Face folder"),
  )
    .requiredOption("-p, --prompt <text>", "text to continue")
    .option("-n, --tokens <n>", "tokens to make", wholeNumber(1, 100_000), 200)
    .option("--temperature <t>", "0 takes the likeliest token", realNumber(0, 100), 0.8)
    .option("--top-k <k>", "sample from the k likeliest tokens; 0 from all", wholeNumber(0, 1_000_000), 40)
    .option("--seed <n>", "the same seed gives the same text", wholeNumber(0, Number.MAX_SAFE_INTEGER), 1)
    .option("--threads <n>", "threads of the runtime", wholeNumber(1, 256), 1)
    .action((model: string, options: GenerateOptions & RemoteOptions) => generate(shell, model, options));
};
