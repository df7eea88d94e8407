import { Option } from "commander";
import { realNumber, wholeNumber } from "../arguments.js";
import type { Source } from "../generation.js";
import { writeJson } from "../io.js";
import { withSource } from "../model-source.js";
import { takesRemote, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

interface GenerateFlags extends RemoteOptions {
  readonly prompt: string;
  readonly maxTokens: number;
  /** The option's earlier name. */
  readonly tokens?: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly seed: number;
  readonly threads: number;
}

async function write(shell: Shell, source: Source, flags: GenerateFlags): Promise<void> {
  const { io } = shell;
  const { generateText } = await import("../generation.js");
  let text = "";
  // What a model makes up must not steer a terminal.
  const show = (piece: string): void => io.out(io.terminal ? piece.replace(/[^\P{Cc}\n\t]/gu, "\uFFFD") : piece);
  if (flags.json !== true) show(flags.prompt);
  for await (const piece of generateText(source, { ...flags, tokens: flags.tokens ?? flags.maxTokens })) {
    text += piece;
    if (flags.json !== true) show(piece);
    if (shell.signal.aborted) break;
  }
  if (flags.json === true) writeJson(io, { prompt: flags.prompt, text });
  else io.out("\n");
}

const tokens = wholeNumber(1, 100_000);

export const generateCommands: CommandGroup = (program, shell) => {
  takesRemote(
    program.command("generate <model>").description("continue a prompt with a model, or with a Hugging Face folder"),
  )
    .requiredOption("-p, --prompt <text>", "text to continue")
    .option("-n, --max-tokens <n>", "tokens to make", tokens, 200)
    .addOption(new Option("--tokens <n>").argParser(tokens).hideHelp())
    .option("--temperature <t>", "0 takes the likeliest token", realNumber(0, 100), 0.8)
    .option("--top-k <k>", "sample from the k likeliest tokens; 0 from all", wholeNumber(0, 1_000_000), 40)
    .option("--top-p <share>", "sample from the likeliest tokens of this probability together", realNumber(0, 1), 1)
    .option("--seed <n>", "the same seed gives the same text", wholeNumber(0, Number.MAX_SAFE_INTEGER), 1)
    .option("--threads <n>", "threads of the runtime", wholeNumber(1, 256), 1)
    .action((model: string, flags: GenerateFlags) =>
      withSource(shell, model, flags, (source) => write(shell, source, flags)),
    );
};
