import { Model } from "#proto/shoal/v1/model.js";
import { CliError, EXIT } from "../exit.js";
import { exportModel, importModel, type TransferProgress } from "../folders.js";
import { writeJson } from "../io.js";
import { formatBytes, formatCount } from "../output/format.js";
import { workDisplay } from "../output/work-display.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

interface ExportOptions extends RemoteOptions {
  readonly adapter?: boolean;
  readonly merged?: boolean;
}

/** What is asked for; empty for the whole model. */
function formOf({ adapter, merged }: ExportOptions): string {
  if (adapter === true && merged === true) {
    throw new CliError("--adapter and --merged are two forms: choose one", EXIT.usage);
  }
  return adapter === true ? "adapter" : merged === true ? "merged" : "";
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

async function importFolder(
  shell: Shell,
  name: string,
  directory: string,
  options: RemoteOptions & { tokenizer: string },
): Promise<void> {
  const display = transferDisplay(shell);
  const { model } = await withClients(shell, options, (clients) =>
    importModel(clients, name, directory, options.tokenizer, (progress) => display.show(progress)),
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
    .action((name: string, directory: string, options: ExportOptions) => exportFolder(shell, name, directory, options));
  takesRemote(
    program.command("import <model> <dir>").description("read a Hugging Face folder, sharded or not, as a new model"),
  )
    .option("--tokenizer <kind>", "bytes, chars or huggingface; chosen by the folder's files", "")
    .action((name: string, directory: string, options: RemoteOptions & { tokenizer: string }) =>
      importFolder(shell, name, directory, options),
    );
};
