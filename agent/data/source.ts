import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { codeOf } from "#common/adapters/coded-error.js";

/** A data file, known without opening it. */
export interface DataFile {
  /** Path relative to the folder, with "/". */
  readonly name: string;
  readonly sizeBytes: number;
  readonly modifiedMs: number;
}

/** A folder of data files. */
export interface DataSource {
  /** The folder, for messages. */
  readonly folder: string;
  /** Its .txt and .jsonl files, subfolders included, in order of name. Throws a CodedError if it cannot be listed. */
  list(): Promise<DataFile[]>;
  /** Opens and reads one file. */
  open(name: string): Promise<Uint8Array>;
}

const isData = (name: string): boolean => name.endsWith(".txt") || name.endsWith(".jsonl");

/** The folder on this machine's disk. */
export function folderSource(folder: string): DataSource {
  return {
    folder,
    async list() {
      const names = (await readdir(folder, { recursive: true }))
        .filter(isData)
        .map((name) => name.replaceAll("\\", "/"));
      const files: DataFile[] = [];
      for (const name of names.sort()) {
        try {
          const found = await stat(join(folder, name));
          if (found.isFile()) files.push({ name, sizeBytes: found.size, modifiedMs: found.mtimeMs });
        } catch (error) {
          // Removed since it was listed.
          if (codeOf(error) !== "ENOENT") throw error;
        }
      }
      return files;
    },
    open: (name) => readFile(join(folder, name)),
  };
}

/** Changes whenever a file is added, removed or rewritten. */
export function fingerprint(files: readonly DataFile[]): string {
  return files.map(({ name, sizeBytes, modifiedMs }) => `${name}|${sizeBytes}|${modifiedMs}`).join("\n");
}
