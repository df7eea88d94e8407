import type { Kind, ResourceOf, ResourceStore } from "../ports/resource-store.js";

/** Something that says which keys may need a look. */
export interface Source {
  name: string;
  /** Keys, as things happen. */
  keys(signal: AbortSignal): AsyncIterable<string>;
  /** Every key there is, for resyncs. */
  all?(): Promise<string[]>;
}

/**
 * Keys of resources that exist or change. `keysOf` gets the name and, unless it is gone, the resource; by default the
 * key is the name.
 */
export function storeSource<K extends Kind>(
  store: ResourceStore,
  kind: K,
  keysOf: (name: string, resource: ResourceOf[K] | undefined) => readonly string[] = (name) => [name],
): Source {
  return {
    name: kind,
    async *keys(signal) {
      for await (const event of store.watch(kind, { signal })) {
        if (event.type === "put") yield* keysOf(event.resource.metadata?.name ?? "", event.resource);
        else if (event.type === "delete") yield* keysOf(event.name, undefined);
      }
    },
    async all() {
      const { items } = await store.list(kind);
      return items.flatMap((item) => keysOf(item.metadata?.name ?? "", item));
    },
  };
}

/** Keys from any other stream of wake-ups, e.g. commits in the update log. */
export function triggerSource(name: string, keys: (signal: AbortSignal) => AsyncIterable<string>): Source {
  return { name, keys };
}
