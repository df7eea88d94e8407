import type { Clock } from "../ports/clock.js";
import type { Kind, ResourceOf, ResourceStore, StoreEvent, WatchOptions } from "../ports/resource-store.js";

/** All resources of a kind, in order of name; what the store has, or a memory of it. */
export interface ResourceLister {
  list<K extends Kind>(kind: K): Promise<{ items: ResourceOf[K][] }>;
}

/** When watches have been silent for longer, they may be dead: what is asked for is read anew. */
const QUIET_MS = 5_000;

/** What is known of a kind. Held apart by kind, so a value is always of its key's. */
class Known<K extends Kind> {
  private readonly byName = new Map<string, ResourceOf[K]>();
  /** Names in order; undefined when one has come or gone. */
  private names: string[] | undefined;
  /** Names that the watch under way has told so far; none before one has begun, and none once everything has come. */
  private arriving: Set<string> | undefined;
  isSynced = false;

  /** A new watch tells everything again, but not what was removed meanwhile. */
  beginAnew(): void {
    this.arriving = new Set();
    this.isSynced = false;
  }

  take(event: StoreEvent<K>): void {
    if (event.type === "delete") this.remove(event.name);
    else if (event.type === "put") {
      const name = event.resource.metadata?.name ?? "";
      if (!this.byName.has(name)) this.names = undefined;
      this.byName.set(name, event.resource);
      this.arriving?.add(name);
    } else {
      for (const name of [...this.byName.keys()]) if (this.arriving?.has(name) === false) this.remove(name);
      this.arriving = undefined;
      this.isSynced = true;
    }
  }

  items(): ResourceOf[K][] {
    this.names ??= [...this.byName.keys()].sort((a, b) => (a < b ? -1 : 1));
    return this.names.flatMap((name) => this.byName.get(name) ?? []);
  }

  private remove(name: string): void {
    this.byName.delete(name);
    this.names = undefined;
  }
}

/**
 * Resources as the watches that a controller runs anyway have told them, so that a look at a large fleet reads nothing
 * (controller-runtime's cache). A key that such a watch wakes is looked at in a world that has the event: what is watched
 * is remembered before it is told. Reads from the store while a kind is not watched or not yet known whole, and when
 * nothing was heard for five seconds.
 */
export class ResourceCache implements ResourceLister {
  private readonly known: { [K in Kind]?: Known<K> } = {};
  private heardAtMs = -Infinity;

  constructor(
    private readonly store: ResourceStore,
    private readonly clock: Clock,
  ) {}

  /** What the store's watch tells, of the whole kind, once it is remembered. One watch of a kind at a time. */
  async *watch<K extends Kind>(
    kind: K,
    { signal }: Pick<WatchOptions, "signal">,
  ): AsyncGenerator<StoreEvent<K>, void, undefined> {
    const known = this.knownOf(kind);
    known.beginAnew();
    try {
      for await (const event of this.store.watch(kind, { signal })) {
        known.take(event);
        this.heardAtMs = this.clock.monotonicMs();
        yield event;
      }
    } finally {
      known.isSynced = false;
    }
  }

  async list<K extends Kind>(kind: K): Promise<{ items: ResourceOf[K][] }> {
    const known = this.knownOf(kind);
    const isFresh = this.clock.monotonicMs() - this.heardAtMs <= QUIET_MS;
    return known.isSynced && isFresh ? { items: known.items() } : this.store.list(kind);
  }

  private knownOf<K extends Kind>(kind: K): Known<K> {
    const known: { [one in K]?: Known<one> } = this.known;
    return (known[kind] ??= new Known<K>());
  }
}
