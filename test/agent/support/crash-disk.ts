import { CodedError } from "#common/adapters/coded-error.js";
import type { Disk } from "#agent/disk.js";

interface File {
  kind: "file";
  content: Uint8Array;
  synced: Uint8Array;
  modifiedMs: number;
}

interface Folder {
  kind: "folder";
  names: Map<string, Node>;
  synced: Map<string, Node>;
}

type Node = File | Folder;

/** Time of every file that was not touched: where a ManualClock begins. */
const CREATED_MS = 1_700_000_000_000;

const newFolder = (): Folder => ({ kind: "folder", names: new Map(), synced: new Map() });

function joinBytes(a: Uint8Array, b: Uint8Array): Uint8Array {
  return Uint8Array.from(Buffer.concat([a, b]));
}

/** "lose": only what was synced is left, torn files half way; "keep": everything is left, as after kill -9. */
export type CrashMode = "lose" | "keep";

/**
 * A file system in memory that knows what a power failure would leave. It can die at the n-th operation, and be full.
 */
export class CrashDisk implements Disk {
  readonly #root = newFolder();
  /** Operations until death. */
  operationsLeft = Infinity;
  /** Operations done so far. */
  operations = 0;
  /** Most bytes in all files. */
  capacityBytes = Infinity;
  /** Paths read, in order. */
  readonly reads: string[] = [];

  /** Ends the operation of a dead machine and brings it up again with what survived. */
  crash(mode: CrashMode): void {
    this.operationsLeft = Infinity;
    if (mode === "lose") this.#forget(this.#root);
    else this.#settle(this.#root);
  }

  #forget(folder: Folder): void {
    folder.names = new Map(folder.synced);
    for (const node of folder.names.values()) {
      if (node.kind === "folder") this.#forget(node);
      else {
        // A torn file: half of what was added after the last sync.
        const kept = node.synced.length + Math.floor((node.content.length - node.synced.length) / 2);
        node.content = node.content.slice(0, Math.max(kept, 0));
        node.synced = node.content;
      }
    }
  }

  #settle(folder: Folder): void {
    folder.synced = new Map(folder.names);
    for (const node of folder.names.values()) {
      if (node.kind === "folder") this.#settle(node);
      else node.synced = node.content;
    }
  }

  /** Flips a bit of a file: a medium that lies. */
  damage(path: string, index: number): void {
    const file = this.#file(path);
    file.content[index % file.content.length] = (file.content[index % file.content.length] ?? 0) ^ 1;
  }

  get usedBytes(): number {
    const count = (node: Node): number =>
      node.kind === "file"
        ? node.content.length
        : [...node.names.values()].reduce((sum, child) => sum + count(child), 0);
    return count(this.#root);
  }

  #operate(): void {
    if (this.operationsLeft <= 0) throw new CodedError("CRASH", "the machine is dead");
    this.operationsLeft--;
    this.operations++;
  }

  #find(path: string): Node | undefined {
    let node: Node | undefined = this.#root;
    for (const name of path.split("/").filter((part) => part !== "")) {
      node = node?.kind === "folder" ? node.names.get(name) : undefined;
    }
    return node;
  }

  #parent(path: string): { folder: Folder; name: string } {
    const parts = path.split("/").filter((part) => part !== "");
    const name = parts.pop() ?? "";
    const folder = this.#find(parts.join("/"));
    if (folder?.kind !== "folder") throw new CodedError("ENOENT", `no folder for ${path}`);
    return { folder, name };
  }

  #file(path: string): File {
    const node = this.#find(path);
    if (node?.kind !== "file") throw new CodedError("ENOENT", `no file ${path}`);
    return node;
  }

  #add(file: File, bytes: Uint8Array): void {
    const room = this.capacityBytes - this.usedBytes;
    file.content = joinBytes(file.content, bytes.subarray(0, Math.max(0, room)));
    if (bytes.length > room) throw new CodedError("ENOSPC", "no space left on device");
  }

  async makeFolder(path: string): Promise<void> {
    await Promise.resolve();
    this.#operate();
    let folder = this.#root;
    for (const name of path.split("/").filter((part) => part !== "")) {
      const next = folder.names.get(name) ?? newFolder();
      if (next.kind !== "folder") throw new CodedError("EEXIST", path);
      folder.names.set(name, next);
      folder.synced.set(name, next);
      folder = next;
    }
  }

  async write(path: string, parts: readonly Uint8Array[]): Promise<void> {
    await Promise.resolve();
    this.#operate();
    const { folder, name } = this.#parent(path);
    const file: File = { kind: "file", content: new Uint8Array(0), synced: new Uint8Array(0), modifiedMs: CREATED_MS };
    folder.names.set(name, file);
    for (const part of parts) this.#add(file, part);
  }

  async append(path: string, bytes: Uint8Array): Promise<void> {
    if (this.#find(path) === undefined) await this.write(path, []);
    this.#operate();
    this.#add(this.#file(path), bytes);
  }

  async sync(path: string): Promise<void> {
    await Promise.resolve();
    this.#operate();
    const node = this.#find(path);
    if (node === undefined) throw new CodedError("ENOENT", path);
    if (node.kind === "file") node.synced = node.content;
    else node.synced = new Map(node.names);
  }

  async rename(from: string, to: string): Promise<void> {
    await Promise.resolve();
    this.#operate();
    const [source, target] = [this.#parent(from), this.#parent(to)];
    const node = source.folder.names.get(source.name);
    if (node === undefined) throw new CodedError("ENOENT", from);
    const old = target.folder.names.get(target.name);
    if (old?.kind === "folder" && old.names.size > 0) throw new CodedError("ENOTEMPTY", to);
    source.folder.names.delete(source.name);
    target.folder.names.set(target.name, node);
  }

  async remove(path: string): Promise<void> {
    await Promise.resolve();
    this.#operate();
    if (this.#find(path) === undefined) return;
    const { folder, name } = this.#parent(path);
    folder.names.delete(name);
  }

  async read(path: string): Promise<Uint8Array | undefined> {
    await Promise.resolve();
    this.#operate();
    this.reads.push(path);
    const node = this.#find(path);
    return node?.kind === "file" ? node.content.slice() : undefined;
  }

  async readRange(path: string, offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    await Promise.resolve();
    this.#operate();
    const bytes = this.#file(path).content.slice(offset, offset + length);
    if (into === undefined) return bytes;
    into.set(bytes);
    return into.subarray(0, bytes.length);
  }

  async list(path: string): Promise<string[]> {
    await Promise.resolve();
    this.#operate();
    const node = this.#find(path);
    return node?.kind === "folder" ? [...node.names.keys()].sort() : [];
  }

  async stat(path: string): Promise<{ sizeBytes: number; modifiedMs: number } | undefined> {
    await Promise.resolve();
    this.#operate();
    const node = this.#find(path);
    if (node === undefined) return undefined;
    return node.kind === "file"
      ? { sizeBytes: node.content.length, modifiedMs: node.modifiedMs }
      : { sizeBytes: 0, modifiedMs: CREATED_MS };
  }

  async space(): Promise<{ freeBytes: number; totalBytes: number }> {
    await Promise.resolve();
    return { freeBytes: Math.max(0, this.capacityBytes - this.usedBytes), totalBytes: this.capacityBytes };
  }

  async touch(path: string, atMs: number): Promise<void> {
    await Promise.resolve();
    this.#operate();
    this.#file(path).modifiedMs = atMs;
  }
}
