import type { FolderTemplate } from "#common/graph/folder.js";

/** An imported folder as it was, but for its weights and its tokenizer. */
export interface StoredFolder {
  readonly template: FolderTemplate;
  /** Small files beside the weights, as they were. */
  readonly companions: ReadonlyMap<string, Uint8Array>;
}

const MAGIC = "shoal-folder-1";

/** Lengths of the parts that follow, in their order. */
interface Contents {
  readonly magic: string;
  readonly config: number;
  readonly index: number | null;
  readonly files: readonly {
    readonly name: string;
    readonly header: number;
    readonly kept: readonly (readonly [string, number])[];
  }[];
  readonly companions: readonly (readonly [string, number])[];
}

const lengths = (parts: ReadonlyMap<string, Uint8Array>): (readonly [string, number])[] =>
  [...parts].map(([name, bytes]) => [name, bytes.length] as const);

/** One line of JSON that tells the parts, then their bytes one after the other. */
export function encodeFolder({ template, companions }: StoredFolder): Uint8Array {
  const { config, index, files } = template;
  const contents: Contents = {
    magic: MAGIC,
    config: config.length,
    index: index?.length ?? null,
    files: files.map(({ name, header, kept }) => ({ name, header: header.length, kept: lengths(kept) })),
    companions: lengths(companions),
  };
  return Buffer.concat([
    Buffer.from(`${JSON.stringify(contents)}\n`),
    config,
    ...(index === undefined ? [] : [index]),
    ...files.flatMap(({ header, kept }) => [header, ...kept.values()]),
    ...companions.values(),
  ]);
}

/** The way back; undefined for bytes that `encodeFolder` did not write. */
export function decodeFolder(bytes: Uint8Array): StoredFolder | undefined {
  const end = bytes.indexOf(10);
  const contents = parseContents(bytes.subarray(0, Math.max(0, end)));
  if (contents === undefined) return undefined;
  let at = end + 1;
  const take = (length: number): Uint8Array => {
    at += length;
    return bytes.subarray(at - length, at);
  };
  const takeAll = (parts: Contents["companions"]): Map<string, Uint8Array> =>
    new Map(parts.map(([name, length]) => [name, take(length)]));
  const config = take(contents.config);
  const index = contents.index === null ? undefined : take(contents.index);
  const files = contents.files.map(({ name, header, kept }) => ({ name, header: take(header), kept: takeAll(kept) }));
  const folder = { template: { config, index, files }, companions: takeAll(contents.companions) };
  return at === bytes.length ? folder : undefined;
}

function parseContents(line: Uint8Array): Contents | undefined {
  try {
    const contents = JSON.parse(new TextDecoder().decode(line)) as Contents;
    return contents.magic === MAGIC ? contents : undefined;
  } catch {
    return undefined;
  }
}
