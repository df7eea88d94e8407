import { Metadata } from "@grpc/grpc-js";
import { once } from "node:events";
import { closeSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import { type FileHandle, mkdir, open, rename, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import {
  ADAPTER_CONFIG,
  ADAPTER_WEIGHTS,
  COMPANIONS,
  CONFIG,
  INDEX,
  isWeights,
  SHOAL_TOKENIZER,
  TOKENIZER,
  WEIGHTS,
} from "#common/domain/model-files.js";
import type { FilePiece, ImportHeader, ImportRequest, ImportResponse } from "#proto/shoal/v1/model_service.js";
import { streamed, type Clients } from "./calls.js";
import { CliError, EXIT } from "./exit.js";

const PIECE_BYTES = 512 * 1024;
/** Longest import: many GiB over a slow link. */
const IMPORT_DEADLINE_MS = 6 * 3_600_000;

/** How far a transfer is. `totalBytes` is of all files sent, or of the one file received. */
export interface TransferProgress {
  readonly file: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
}

type OnProgress = (progress: TransferProgress) => void;

/** What goes wrong with a path while it is written, told with a remedy. */
async function writing<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const remedy = "make room and permit writing there, or choose another folder";
    throw new CliError(`${path} cannot be written: ${(error as Error).message}; ${remedy}`);
  }
}

/** A file that gets its name only when it is complete. */
class PartFile {
  readonly name: string;
  readonly #size: number;
  readonly #path: string;
  readonly #handle: FileHandle;
  written = 0;

  private constructor(name: string, size: number, path: string, handle: FileHandle) {
    this.name = name;
    this.#size = size;
    this.#path = path;
    this.#handle = handle;
  }

  static async open(directory: string, { fileName, fileSizeBytes }: FilePiece): Promise<PartFile> {
    const path = join(directory, fileName);
    const handle = await writing(path, () => open(`${path}.part`, "w"));
    return new PartFile(fileName, fileSizeBytes, path, handle);
  }

  async write(data: Uint8Array): Promise<void> {
    await writing(this.#path, async () => {
      // One call may write less than it is given.
      for (let at = 0; at < data.length;) at += (await this.#handle.write(data, at)).bytesWritten;
    });
    this.written += data.length;
  }

  async finish(): Promise<void> {
    await writing(this.#path, () => this.#handle.close());
    if (this.written !== this.#size) {
      throw new CliError(
        `${this.name} ended after ${this.written} of ${this.#size} bytes: export it again`,
        EXIT.temporary,
      );
    }
    await writing(this.#path, () => rename(`${this.#path}.part`, this.#path));
  }

  /** Leaves nothing of a file that was not finished. Never throws: what went wrong before is what counts. */
  async discard(): Promise<void> {
    await this.#handle.close().catch(() => undefined);
    await rm(`${this.#path}.part`, { force: true }).catch(() => undefined);
  }
}

/** What a model is written as. */
export interface ExportForm {
  /** "merged", "adapter", "onnx", or empty for the whole model. */
  readonly form: string;
  /** Tokens of an ONNX file's sequence; 0 leaves it to the service. */
  readonly seqLen: number;
}

const WHOLE: ExportForm = { form: "", seqLen: 0 };

/**
 * Streams a model out into a folder.
 * @returns names of the files
 * @throws CliError where the folder cannot be written, and where a file is not complete; no part of a file is left
 */
export async function exportModel(
  { models }: Pick<Clients, "models">,
  name: string,
  directory: string,
  form: ExportForm = WHOLE,
  onProgress: OnProgress = () => undefined,
): Promise<string[]> {
  await writing(directory, () => mkdir(directory, { recursive: true }));
  const names: string[] = [];
  let file: PartFile | undefined;
  try {
    for await (const { piece } of streamed(models.export({ name, ...form }))) {
      if (piece === undefined) continue;
      // A name from the wire must not leave the folder.
      if (basename(piece.fileName) !== piece.fileName)
        throw new CliError(`the service sent the file name ${piece.fileName}`);
      if (file?.name !== piece.fileName) {
        await file?.finish();
        file = await PartFile.open(directory, piece);
        names.push(piece.fileName);
      }
      await file.write(piece.data);
      onProgress({ file: file.name, doneBytes: file.written, totalBytes: piece.fileSizeBytes });
    }
    if (file === undefined) throw new CliError(`model ${name} has no files`);
    await file.finish();
  } catch (error) {
    await file?.discard();
    throw error;
  }
  return names;
}

/** The shards an index names; what is wrong with it is said by those who read the folder. */
function shardsOf(index: string): string[] {
  try {
    const { weight_map: map } = JSON.parse(readFileSync(index, "utf8")) as { weight_map?: Record<string, unknown> };
    return [...new Set(Object.values(map ?? {}))].filter((name) => typeof name === "string").filter(isWeights);
  } catch {
    return [];
  }
}

const hasFile = (directory: string, name: string): boolean =>
  statSync(join(directory, name), { throwIfNoEntry: false })?.isFile() ?? false;

/** Whether the folder holds an adapter, as the peft library writes it, and no model. */
export const isAdapterFolder = (directory: string): boolean =>
  hasFile(directory, ADAPTER_CONFIG) && !hasFile(directory, CONFIG);

/** Files of a Hugging Face folder in the order in which they are sent: small ones first, then the weights. */
export function modelFiles(directory: string): string[] {
  const has = (name: string): boolean => hasFile(directory, name);
  const small = [TOKENIZER, SHOAL_TOKENIZER, ...COMPANIONS].filter(has);
  const sharded = has(INDEX) && !has(WEIGHTS);
  return [CONFIG, ...small, ...(sharded ? [INDEX, ...shardsOf(join(directory, INDEX))] : [WEIGHTS])];
}

/** Size of a file of the folder, bytes. */
function sizeOf(directory: string, fileName: string): number {
  try {
    return statSync(join(directory, fileName)).size;
  } catch (error) {
    throw new CliError(`${join(directory, fileName)} cannot be read: ${(error as Error).message}`, EXIT.invalid);
  }
}

/** Pieces of one file of the folder. */
function* piecesOf(directory: string, fileName: string): Generator<FilePiece, void, undefined> {
  const fileSizeBytes = sizeOf(directory, fileName);
  const file = openSync(join(directory, fileName), "r");
  try {
    for (;;) {
      const data = Buffer.alloc(PIECE_BYTES);
      const length = readSync(file, data, 0, PIECE_BYTES, null);
      if (length === 0) return;
      yield { fileName, fileSizeBytes, data: data.subarray(0, length) };
    }
  } finally {
    closeSync(file);
  }
}

/** Streams a Hugging Face folder in; an adapter's two files if the header names a base. */
export async function importModel(
  { models }: Clients,
  header: ImportHeader,
  directory: string,
  onProgress: OnProgress = () => undefined,
): Promise<ImportResponse> {
  const files = header.base === "" ? modelFiles(directory) : [ADAPTER_CONFIG, ADAPTER_WEIGHTS];
  const totalBytes = files.reduce((sum, file) => sum + sizeOf(directory, file), 0);
  let settle: (error: Error | null, response: ImportResponse) => void = () => undefined;
  const answer = new Promise<ImportResponse>((resolve, reject) => {
    settle = (error, response) => (error === null ? resolve(response) : reject(error));
  });
  const deadline = Date.now() + IMPORT_DEADLINE_MS;
  const stream = models.import(new Metadata(), { deadline }, (error, response) => settle(error, response));
  const send = async (part: ImportRequest["part"]): Promise<void> => {
    if (!stream.write({ part })) await Promise.race([once(stream, "drain"), answer]);
  };
  let doneBytes = 0;
  try {
    await send({ $case: "header", value: header });
    for (const file of files) {
      for (const piece of piecesOf(directory, file)) {
        await send({ $case: "piece", value: piece });
        doneBytes += piece.data.length;
        onProgress({ file, doneBytes, totalBytes });
      }
    }
  } catch (error) {
    stream.cancel();
    answer.catch(() => undefined);
    throw error;
  }
  stream.end();
  return answer;
}
