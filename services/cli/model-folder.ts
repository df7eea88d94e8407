import { readFileSync } from "node:fs";
import { join } from "node:path";
import { importFolder, type ImportedFolder } from "#common/graph/folder.js";
import { CONFIG, INDEX, isWeights } from "#common/domain/model-files.js";
import { CliError, EXIT } from "./exit.js";
import { modelFiles } from "./folders.js";

type ReadFolder = Extract<ImportedFolder, { ok: true }>;

/**
 * Config and weights of a Hugging Face folder, in one file or in shards.
 * @throws CliError (invalid) for a folder that holds no usable model
 */
export function readModelFolder(directory: string): Pick<ReadFolder, "config" | "weights"> {
  const names = modelFiles(directory).filter((name) => name === CONFIG || name === INDEX || isWeights(name));
  const read = (name: string): Uint8Array => {
    try {
      return readFileSync(join(directory, name));
    } catch (error) {
      throw new CliError(`${join(directory, name)} cannot be read: ${(error as Error).message}`, EXIT.invalid);
    }
  };
  const imported = importFolder(new Map(names.map((name) => [name, read(name)])));
  if (imported.ok) return imported;
  const list = imported.violations.map(({ field, description }) => `${field} ${description}`).join("; ");
  throw new CliError(`${directory} holds no model that can be used: ${list}`, EXIT.invalid);
}
