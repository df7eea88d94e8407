import { readFileSync } from "node:fs";
import { wholeNumber } from "../arguments.js";
import { CliError, EXIT } from "../exit.js";
import { writeJson } from "../io.js";
import { withSource } from "../model-source.js";
import { formatCount } from "../output/format.js";
import { formatFields } from "../output/table.js";
import { workDisplay } from "../output/work-display.js";
import { takesRemote, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

interface EvalFlags extends RemoteOptions {
  readonly text: string;
  readonly contextTokens: number;
  readonly threads: number;
}

/** Totals from which logs are told of progress. */
const LONG_TOKENS = 200_000;

async function readText(shell: Shell, path: string): Promise<string> {
  if (path === "-") return shell.io.readStdin();
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new CliError(`--text ${path} cannot be read: ${(error as Error).message}`, EXIT.invalid);
  }
}

async function evaluate(shell: Shell, model: string, flags: EvalFlags): Promise<void> {
  const { io } = shell;
  const text = await readText(shell, flags.text);
  const display = workDisplay(io, LONG_TOKENS);
  const result = await withSource(shell, model, flags, async (source) => {
    const { evaluateText } = await import("../evaluation.js");
    const options = { context: flags.contextTokens, threads: flags.threads };
    return evaluateText(source, text, options, shell.signal, (done, total) => {
      display.show({ what: model, done, total, detail: `${formatCount(done)} of ${formatCount(total)} tokens` });
    });
  });
  display.clear();
  if (flags.json === true) {
    writeJson(io, { model, text: flags.text, ...result });
    return;
  }
  io.out(
    formatFields([
      ["loss", `${result.loss.toFixed(4)} nats per token`],
      ["perplexity", result.perplexity.toPrecision(5)],
      ["tokens", String(result.tokens)],
    ]),
  );
}

export const evalCommands: CommandGroup = (program, shell) => {
  takesRemote(
    program.command("eval <model>").description("measure how well a model, or a Hugging Face folder, predicts a text"),
  )
    .requiredOption("--text <file>", "text to predict; - reads standard input")
    .option("--context-tokens <n>", "longest context of a prediction", wholeNumber(1, 1_000_000), 1024)
    .option("--threads <n>", "threads of the runtime", wholeNumber(1, 256), 1)
    .action((model: string, flags: EvalFlags) => evaluate(shell, model, flags));
};
