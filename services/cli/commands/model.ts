import { Model } from "#proto/shoal/v1/model.js";
import type { ImportHeader } from "#proto/shoal/v1/model_service.js";
import { wholeNumber } from "../arguments.js";
import { CliError, EXIT } from "../exit.js";
import { type ExportForm, exportModel, importModel, isAdapterFolder, type TransferProgress } from "../folders.js";
import { writeJson } from "../io.js";
import { formatBytes, formatCount } from "../output/format.js";
import { workDisplay } from "../output/work-display.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

interface ExportOptions extends RemoteOptions {
  readonly adapter?: boolean;
  readonly merged?: boolean;
  readonly onnx?: boolean;
  readonly seqLen?: number;
}

/** What is asked for; an empty form is the whole model. */
function formOf({ adapter, merged, onnx, seqLen = 0 }: ExportOptions): ExportForm {
  const flags = { adapter, merged, onnx };
  const asked = Object.entries(flags).flatMap(([form, wanted]) => (wanted === true ? [form] : []));
  if (asked.length > 1) {
    const names = asked.map((form) => `--${form}`).join(" and ");
    throw new CliError(`${names} are different forms: choose one`, EXIT.usage);
  }
  if (seqLen > 0 && onnx !== true) throw new CliError("--seq-len is only for --onnx: leave it out", EXIT.usage);
  return { form: asked[0] ?? "", seqLen };
}

/** Bytes from which logs are told of progress. */
const LONG_BYTES = 64 * 2 ** 20;

/** Shows how far a transfer is. */
function transferDisplay({ io }: Shell): { show(progress: TransferProgress): void; clear(): void } {
  const display = workDisplay(io, LONG_BYTES);
  return {
    show: ({ file, doneBytes: done, totalBytes: total }) => {
      display.show({ what: file, done, total, detail: `${formatBytes(done)} of ${formatBytes(total)}` });
    },
    clear: () => display.clear(),
  };
}

async function exportFolder(shell: Shell, name: string, directory: string, options: ExportOptions): Promise<void> {
  const display = transferDisplay(shell);
  const form = formOf(options);
  const files = await withClients(shell, options, (clients) =>
    exportModel(clients, name, directory, form, (progress) => display.show(progress)),
  );
  display.clear();
  if (options.json === true) writeJson(shell.io, { model: name, directory, files });
  else shell.io.out(`model/${name} exported to ${directory}: ${files.join(", ")}\n`);
}

interface ImportOptions extends RemoteOptions {
  readonly tokenizer: string;
  readonly base: string;
}

/** What the folder is to become. */
function headerOf(name: string, directory: string, { tokenizer, base }: ImportOptions): ImportHeader {
  const isAdapter = isAdapterFolder(directory);
  if (isAdapter && base === "") {
    const remedy = "import the model it was made for, then name that with --base";
    throw new CliError(`${directory} holds an adapter and no model: ${remedy}`, EXIT.usage);
  }
  if (!isAdapter && base !== "") {
    throw new CliError(`--base is for a folder with an adapter, which ${directory} is not: leave it out`, EXIT.usage);
  }
  return { name, tokenizerKind: tokenizer, base };
}

async function importFolder(shell: Shell, name: string, directory: string, options: ImportOptions): Promise<void> {
  const header = headerOf(name, directory, options);
  const display = transferDisplay(shell);
  const { model } = await withClients(shell, options, (clients) =>
    importModel(clients, header, directory, (progress) => display.show(progress)),
  );
  display.clear();
  if (options.json === true) writeJson(shell.io, model === undefined ? null : Model.toJSON(model));
  else {
    const parameters = formatCount(model?.parameters ?? 0);
    shell.io.out(`model/${name} imported: ${model?.family ?? "?"}, ${parameters} parameters\n`);
  }
}

/** export and import. */
export const modelCommands: CommandGroup = (program, shell) => {
  takesRemote(
    program
      .command("export <model> <dir>")
      .description("write a model as a Hugging Face folder; a job's model has its name"),
  )
    .option("--adapter", "the adapters alone, as the peft library keeps them")
    .option("--merged", "the whole model, adapters folded into the base's weights (the default)")
    .option("--onnx", "the whole model as an ONNX file for inference, with ONNX Runtime's operators")
    .option(
      "--seq-len <n>",
      "tokens of the ONNX file's sequences (default: the context, at most 512)",
      wholeNumber(1, 1_000_000),
    )
    .action((name: string, directory: string, options: ExportOptions) => exportFolder(shell, name, directory, options));
  takesRemote(
    program
      .command("import <model> <dir>")
      .description("read a Hugging Face folder, sharded or not, or a peft adapter, as a new model"),
  )
    .option("--tokenizer <kind>", "bytes, chars or huggingface; chosen by the folder's files", "")
    .option("--base <model>", "the stored model that an adapter's folder (adapter_config.json) belongs to", "")
    .action((name: string, directory: string, options: ImportOptions) => importFolder(shell, name, directory, options));
};
