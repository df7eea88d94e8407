import { once } from "node:events";
import {
  createWriteStream,
  mkdirSync,
  openSync,
  readSync,
  closeSync,
  fstatSync,
  renameSync,
  type WriteStream,
} from "node:fs";
import { basename, join } from "node:path";
import { ImportRequest, type ImportResponse } from "#proto/shoal/v1/model_service.js";
import { streamed, type Clients } from "./calls.js";
import { CliError, EXIT } from "./exit.js";

const PIECE_BYTES = 512 * 1024;
/** Files of a model folder that are sent, in this order; tokenizer.json may be absent. */
const MODEL_FILES = ["config.json", "tokenizer.json", "model.safetensors"] as const;

/** A file that gets its name only when it is complete. */
interface OpenFile {
  readonly name: string;
  readonly size: number;
  readonly stream: WriteStream;
  written: number;
}

async function finish(file: OpenFile, directory: string): Promise<void> {
  file.stream.end();
  await once(file.stream, "close");
  if (file.written !== file.size) {
    throw new CliError(
      `${file.name} ended after ${file.written} of ${file.size} bytes: export it again`,
      EXIT.temporary,
    );
  }
  renameSync(join(directory, `${file.name}.part`), join(directory, file.name));
}

/**
 * Streams a model out into a folder.
 * @returns names of the files
 */
export async function exportModel({ models }: Clients, name: string, directory: string): Promise<string[]> {
  mkdirSync(directory, { recursive: true });
  const names: string[] = [];
  let file: OpenFile | undefined;
  for await (const { piece } of streamed(models.export({ name }))) {
    if (piece === undefined) continue;
    // A name from the wire must not leave the folder.
    if (basename(piece.fileName) !== piece.fileName)
      throw new CliError(`the service sent the file name ${piece.fileName}`);
    if (file?.name !== piece.fileName) {
      if (file !== undefined) await finish(file, directory);
      const stream = createWriteStream(join(directory, `${piece.fileName}.part`));
      file = { name: piece.fileName, size: piece.fileSizeBytes, stream, written: 0 };
      names.push(piece.fileName);
    }
    file.written += piece.data.length;
    if (!file.stream.write(piece.data)) await once(file.stream, "drain");
  }
  if (file === undefined) throw new CliError(`model ${name} has no files`);
  await finish(file, directory);
  return names;
}

/** Pieces of one file of the folder, or nothing if it is absent. */
function* piecesOf(directory: string, fileName: string): Generator<ImportRequest, void, undefined> {
  let file: number;
  try {
    file = openSync(join(directory, fileName), "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT" && fileName === "tokenizer.json") return;
    throw new CliError(`${join(directory, fileName)} cannot be read: ${(error as Error).message}`, EXIT.invalid);
  }
  try {
    const fileSizeBytes = fstatSync(file).size;
    for (;;) {
      const data = Buffer.alloc(PIECE_BYTES);
      const length = readSync(file, data, 0, PIECE_BYTES, null);
      if (length === 0) return;
      const value = { fileName, fileSizeBytes, data: data.subarray(0, length) };
      yield ImportRequest.fromPartial({ part: { $case: "piece", value } });
    }
  } finally {
    closeSync(file);
  }
}

/** Streams a Hugging Face folder in. */
export async function importModel(
  { models }: Clients,
  name: string,
  directory: string,
  tokenizerKind: string,
): Promise<ImportResponse> {
  let settle: (error: Error | null, response: ImportResponse) => void = () => undefined;
  const answer = new Promise<ImportResponse>((resolve, reject) => {
    settle = (error, response) => (error === null ? resolve(response) : reject(error));
  });
  const stream = models.import((error, response) => settle(error, response));
  const send = async (request: ImportRequest): Promise<void> => {
    if (!stream.write(request)) await Promise.race([once(stream, "drain"), answer]);
  };
  try {
    await send(ImportRequest.fromPartial({ part: { $case: "header", value: { name, tokenizerKind } } }));
    for (const fileName of MODEL_FILES) for (const piece of piecesOf(directory, fileName)) await send(piece);
  } catch (error) {
    stream.cancel();
    answer.catch(() => undefined);
    throw error;
  }
  stream.end();
  return answer;
}
