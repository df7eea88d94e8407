import { randomUUID } from "node:crypto";
import type { Clock } from "../../ports/clock.js";
import type { Kind, ResourceOf, ResourceStore, StoreEvent, WatchOptions, Written } from "../../ports/resource-store.js";
import { Mailbox } from "../mailbox.js";
import { decodeResource, encodeResource, isSelected, nameOf, withIdentity } from "../resource-codecs.js";
import { SystemClock } from "./clock.js";

interface Entry {
  kind: Kind;
  name: string;
  version: number;
  /** JSON text; undefined for what was deleted. */
  text: string | undefined;
}

/** The reference ResourceStore: last state per key, deletions included, under one growing version. */
export class MemoryResourceStore implements ResourceStore {
  private readonly entries = new Map<string, Entry>();
  private readonly listeners = new Set<(entry: Entry) => void>();
  private version = 0;

  constructor(private readonly clock: Clock = new SystemClock()) {}

  get<K extends Kind>(kind: K, name: string): Promise<ResourceOf[K] | undefined> {
    const entry = this.entries.get(`${kind}.${name}`);
    return Promise.resolve(entry?.text === undefined ? undefined : decode(kind, entry.text, entry.version));
  }

  list<K extends Kind>(
    kind: K,
    options?: { labels?: Record<string, string>; prefix?: string },
  ): Promise<{ items: ResourceOf[K][]; version: string }> {
    const items = [...this.entries.values()]
      .filter((entry) => entry.kind === kind)
      .sort((a, b) => (a.name < b.name ? -1 : 1))
      .flatMap((entry) => (entry.text === undefined ? [] : [decode(kind, entry.text, entry.version)]))
      .filter((resource) => isSelected(resource, options));
    return Promise.resolve({ items, version: String(this.version) });
  }

  create<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>> {
    const name = nameOf(resource);
    if (this.entries.get(`${kind}.${name}`)?.text !== undefined)
      return Promise.resolve({ ok: false, reason: "Exists" });
    return this.write(kind, name, withIdentity(resource, randomUUID(), this.clock.nowMs()));
  }

  update<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>> {
    const name = nameOf(resource);
    const entry = this.entries.get(`${kind}.${name}`);
    if (entry?.text === undefined) return Promise.resolve({ ok: false, reason: "NotFound" });
    if (resource.metadata?.resourceVersion !== String(entry.version))
      return Promise.resolve({ ok: false, reason: "Conflict" });
    return this.write(kind, name, resource);
  }

  delete(
    kind: Kind,
    name: string,
    resourceVersion?: string,
  ): Promise<{ ok: true } | { ok: false; reason: "Conflict" | "NotFound" }> {
    const entry = this.entries.get(`${kind}.${name}`);
    if (entry?.text === undefined) return Promise.resolve({ ok: false, reason: "NotFound" });
    if (resourceVersion !== undefined && resourceVersion !== String(entry.version))
      return Promise.resolve({ ok: false, reason: "Conflict" });
    this.record(kind, name, undefined);
    return Promise.resolve({ ok: true });
  }

  async *watch<K extends Kind>(kind: K, options: WatchOptions): AsyncGenerator<StoreEvent<K>, void, undefined> {
    const mailbox = new Mailbox<Entry | "synced">(options.signal, (entry) => (entry === "synced" ? entry : entry.name));
    const isWanted = (entry: Entry): boolean =>
      entry.kind === kind && (options.name === undefined || entry.name === options.name);
    const after = options.afterVersion;
    const past = [...this.entries.values()]
      .filter(
        (entry) => isWanted(entry) && (after === undefined ? entry.text !== undefined : entry.version > Number(after)),
      )
      .sort((a, b) => a.version - b.version);
    for (const entry of past) mailbox.push(entry);
    const syncedAt = String(this.version);
    mailbox.push("synced");
    const listener = (entry: Entry): void => {
      if (isWanted(entry)) mailbox.push(entry);
    };
    this.listeners.add(listener);
    try {
      for await (const entry of mailbox) {
        if (entry === "synced") yield { type: "synced", version: syncedAt };
        else if (entry.text === undefined) yield { type: "delete", name: entry.name, version: String(entry.version) };
        else yield { type: "put", resource: decode(kind, entry.text, entry.version), version: String(entry.version) };
      }
    } finally {
      this.listeners.delete(listener);
    }
  }

  private write<K extends Kind>(kind: K, name: string, resource: ResourceOf[K]): Promise<Written<K>> {
    return new Promise((resolve) => {
      const text = encodeResource(kind, resource);
      const entry = this.record(kind, name, text);
      resolve({ ok: true, resource: decode(kind, text, entry.version) });
    });
  }

  private record(kind: Kind, name: string, text: string | undefined): Entry {
    this.version += 1;
    const entry = { kind, name, version: this.version, text };
    this.entries.set(`${kind}.${name}`, entry);
    for (const listener of this.listeners) listener(entry);
    return entry;
  }
}

function decode<K extends Kind>(kind: K, text: string, version: number): ResourceOf[K] {
  return decodeResource(kind, text, String(version));
}
