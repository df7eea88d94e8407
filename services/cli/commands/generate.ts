import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { realNumber, wholeNumber } from "../arguments.js";
import { call, type Clients } from "../calls.js";
import { exportModel } from "../folders.js";
import type { GenerateOptions, Source } from "../generation.js";
import { writeJson } from "../io.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

/** Loaded only when text is made: the tensor runtime behind it is heavy. */
const generation = () => import("../generation.js");

async function remoteSource(clients: Clients, name: string, directory: string): Promise<Source> {
  const { model } = await call(clients.models.getModel.bind(clients.models), { name });
  const { tokenizerOf } = await generation();
  await exportModel(clients, name, directory);
  return { directory, tokenizer: tokenizerOf(model?.tokenizer ?? TokenizerSpec.fromPartial({}), directory) };
}

async function write(shell: Shell, source: Source, options: GenerateOptions & RemoteOptions): Promise<void> {
  const { io } = shell;
  const { generateText } = await generation();
  let text = "";
  // What a model makes up must not steer a terminal.
  const show = (piece: string): void => io.out(io.terminal ? piece.replace(/[^\P{Cc}\n\t]/gu, "\uFFFD") : piece);
  if (options.json !== true) show(options.prompt);
  for await (const piece of generateText(source, options)) {
    text += piece;
    if (options.json !== true) show(piece);
    if (shell.signal.aborted) break;
  }
  if (options.json === true) writeJson(io, { prompt: options.prompt, text });
  else io.out("\n");
}

async function generate(shell: Shell, model: string, options: GenerateOptions & RemoteOptions): Promise<void> {
  if (statSync(model, { throwIfNoEntry: false })?.isDirectory() === true) {
    await write(shell, (await generation()).folderSource(model), options);
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
