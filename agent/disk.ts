import { constants } from "node:fs";
import { access, mkdir, open, readdir, readFile, rename, rm, stat, statfs, utimes } from "node:fs/promises";
import { dirname } from "node:path";
import { codeOf } from "#common/adapters/coded-error.js";

/**
 * What the agent asks of a file system, in the steps at which a crash can part them: nothing written is safe before
 * `sync` of the file, no new or renamed name before `sync` of its folder. Failures are thrown with the system's `code`
 * (ENOSPC, EACCES...).
 */
export interface Disk {
  /** Makes a folder and its parents; safe at once. */
  makeFolder(path: string): Promise<void>;
  /** Makes or replaces a file. `mode` 0600 for secrets. */
  write(path: string, parts: readonly Uint8Array[], mode?: number): Promise<void>;
  append(path: string, bytes: Uint8Array): Promise<void>;
  /** Forces a file's content, or a folder's names, to the medium. */
  sync(path: string): Promise<void>;
  /** Atomic; replaces a file of the new name. */
  rename(from: string, to: string): Promise<void>;
  /** Removes a file or a folder with all in it; nothing if absent. */
  remove(path: string): Promise<void>;
  /** The whole file; undefined if absent. */
  read(path: string): Promise<Uint8Array | undefined>;
  /** Part of a file; shorter at its end. With `into`, of that length at least, it lies there from the beginning on. */
  readRange(path: string, offset: number, length: number, into?: Uint8Array): Promise<Uint8Array>;
  /** Names in a folder, in order; none if it is absent. */
  list(path: string): Promise<string[]>;
  /** Undefined if absent. */
  stat(path: string): Promise<{ sizeBytes: number; modifiedMs: number } | undefined>;
  /** Bytes of the file system a path lies on, and those of it that can still be written. */
  space(path: string): Promise<{ freeBytes: number; totalBytes: number }>;
  /** Sets the time of last use. */
  touch(path: string, atMs: number): Promise<void>;
}

const isAbsent = (error: unknown): boolean => codeOf(error) === "ENOENT";

async function syncPath(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function writeParts(path: string, flags: string, parts: readonly Uint8Array[], mode: number): Promise<void> {
  const handle = await open(path, flags, mode);
  try {
    for (const part of parts) await handle.writeFile(part);
  } finally {
    await handle.close();
  }
}

async function readPart(path: string, offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
  const handle = await open(path, "r");
  try {
    const target = into ?? Buffer.allocUnsafeSlow(length);
    const { bytesRead } = await handle.read(target, 0, length, offset);
    return target.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}

async function undefinedIfAbsent<T>(result: Promise<T>): Promise<T | undefined> {
  try {
    return await result;
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
}

/** The machine's own file system. */
export const nodeDisk: Disk = {
  makeFolder: async (path) => {
    const first = await mkdir(path, { recursive: true, mode: 0o700 });
    if (first !== undefined) await syncPath(dirname(first));
  },
  write: (path, parts, mode = 0o600) => writeParts(path, "w", parts, mode),
  append: (path, bytes) => writeParts(path, "a", [bytes], 0o600),
  sync: syncPath,
  rename,
  remove: (path) => rm(path, { recursive: true, force: true }),
  read: (path) => undefinedIfAbsent(readFile(path)),
  readRange: readPart,
  list: async (path) => ((await undefinedIfAbsent(readdir(path))) ?? []).sort(),
  stat: async (path) => {
    const found = await undefinedIfAbsent(stat(path));
    return found && { sizeBytes: found.size, modifiedMs: found.mtimeMs };
  },
  space: async (path) => {
    const { bavail, blocks, bsize } = await statfs(path);
    return { freeBytes: bavail * bsize, totalBytes: blocks * bsize };
  },
  touch: (path, atMs) => utimes(path, atMs / 1000, atMs / 1000),
};

/** Whether files can be made in the folder. */
export async function isWritable(folder: string): Promise<boolean> {
  return access(folder, constants.W_OK).then(
    () => true,
    () => false,
  );
}

/** Replaces a file so that after a crash it holds the old or the new content, whole. */
export async function writeAtomically(
  disk: Disk,
  folder: string,
  name: string,
  parts: readonly Uint8Array[],
  mode = 0o600,
): Promise<void> {
  const [temporary, path] = [`${folder}/.${name}.new`, `${folder}/${name}`];
  try {
    await disk.write(temporary, parts, mode);
    await disk.sync(temporary);
    await disk.rename(temporary, path);
    await disk.sync(folder);
  } catch (error) {
    // A full disk must not be kept full by what did not fit; the first failure is the one to report.
    await disk.remove(temporary).catch(() => undefined);
    throw error;
  }
}
