import { Model } from "#proto/shoal/v1/model.js";
import { exportModel, importModel } from "../folders.js";
import { writeJson } from "../io.js";
import { formatCount } from "../output/format.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions } from "../shell.js";

/** export and import. */
export const modelCommands: CommandGroup = (program, shell) => {
  takesRemote(
    program
      .command("export <model> <dir>")
      .description("write a model as a Hugging Face folder; a job's model has its name"),
  ).action((name: string, directory: string, options: RemoteOptions) =>
    withClients(shell, options, async (clients) => {
      const files = await exportModel(clients, name, directory);
      if (options.json === true) writeJson(shell.io, { model: name, directory, files });
      else shell.io.out(`model/${name} exported to ${directory}: ${files.join(", ")}\n`);
    }),
  );
  takesRemote(program.command("import <model> <dir>").description("read a Hugging Face folder as a new model"))
    .option("--tokenizer <kind>", "bytes or huggingface; chosen by whether tokenizer.json is there", "")
    .action((name: string, directory: string, options: RemoteOptions & { tokenizer: string }) =>
      withClients(shell, options, async (clients) => {
        const { model } = await importModel(clients, name, directory, options.tokenizer);
        if (options.json === true) writeJson(shell.io, model === undefined ? null : Model.toJSON(model));
        else
          shell.io.out(
            `model/${name} imported: ${model?.family ?? "?"}, ${formatCount(model?.parameters ?? 0)} parameters\n`,
          );
      }),
    );
};
