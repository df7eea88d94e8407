import { randomUUID } from "node:crypto";
import { ErrorCode, headers, NatsError, type MsgHdrs } from "nats";
import type { Kind, ResourceOf, ResourceStore, StoreEvent, WatchOptions, Written } from "../../ports/resource-store.js";
import { decodeResource, encodeResource, isSelected, nameOf, tooLarge, withIdentity } from "../resource-codecs.js";
import { writeAfter } from "./conditional-write.js";
import type { NatsLink } from "./connection.js";
import { readFromLeader, readStored } from "./direct.js";
import { follow, readPast } from "./follow.js";
import { KV_OPERATION, type StoredMessage } from "./stored-message.js";
import { BUCKET, STREAMS } from "./streams.js";

const PREFIX = `$KV.${BUCKET}.`;
/** Between tries to remove what others write. */
const RETRY_MS = 10;

/** ResourceStore on a NATS KV bucket: key `<Kind>.<name>`, value JSON, version = sequence in the stream. */
export class NatsResourceStore implements ResourceStore {
  private constructor(
    private readonly link: NatsLink,
    private readonly hasCopies: boolean,
  ) {}

  /** The streams must exist (ensureStreams). */
  static async open(link: NatsLink): Promise<NatsResourceStore> {
    const { config } = await (await link.manager()).streams.info(STREAMS.resources);
    return new NatsResourceStore(link, config.num_replicas > 1);
  }

  async get<K extends Kind>(kind: K, name: string): Promise<ResourceOf[K] | undefined> {
    const message = await this.read(`${kind}.${name}`);
    return message === undefined || isDelete(message) ? undefined : decodeMessage(kind, message);
  }

  async list<K extends Kind>(
    kind: K,
    options?: { labels?: Record<string, string>; prefix?: string },
  ): Promise<{ items: ResourceOf[K][]; version: string }> {
    const { messages, lastSeq } = await readPast(this.link, {
      stream: STREAMS.resources,
      filter: `${PREFIX}${kind}.*`,
      afterSeq: 0,
      isKeyed: true,
    });
    // A resource written during the read comes twice; the later state counts.
    const byName = new Map(messages.map((message) => [nameIn(message), message]));
    const items = [...byName]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .flatMap(([, message]) => (isDelete(message) ? [] : [decodeMessage(kind, message)]))
      .filter((resource) => isSelected(resource, options));
    return { items, version: String(lastSeq) };
  }

  async create<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>> {
    const whole = withIdentity<K>(resource, randomUUID(), this.link.clock.nowMs());
    const written = await this.write(kind, whole, 0);
    if (written !== undefined) return { ok: true, resource: written };
    // The mark of its removal is there, or a resource.
    const last = await this.read(`${kind}.${nameOf(whole)}`);
    const again = last === undefined || !isDelete(last) ? undefined : await this.write(kind, whole, last.seq);
    return again === undefined ? { ok: false, reason: "Exists" } : { ok: true, resource: again };
  }

  async update<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>> {
    const version = Number(resource.metadata?.resourceVersion ?? "");
    // Sequence 0 would mean "must not exist" to the server.
    const isVersioned = Number.isSafeInteger(version) && version > 0;
    const written = isVersioned ? await this.write(kind, resource, version) : undefined;
    if (written !== undefined) return { ok: true, resource: written };
    const isGone = (await this.get(kind, nameOf(resource))) === undefined;
    return { ok: false, reason: isGone ? "NotFound" : "Conflict" };
  }

  async delete(
    kind: Kind,
    name: string,
    resourceVersion?: string,
  ): Promise<{ ok: true } | { ok: false; reason: "Conflict" | "NotFound" }> {
    const key = `${kind}.${name}`;
    for (;;) {
      const last = await this.read(key);
      if (last === undefined || isDelete(last)) return { ok: false, reason: "NotFound" };
      if (resourceVersion !== undefined && resourceVersion !== String(last.seq))
        return { ok: false, reason: "Conflict" };
      const mark = { stream: STREAMS.resources, subject: `${PREFIX}${key}`, data: "", header: removal() };
      if ((await writeAfter(this.link, { ...mark, lastSeq: last.seq })) !== undefined) return { ok: true };
      await this.link.clock.sleep(RETRY_MS);
    }
  }

  async *watch<K extends Kind>(kind: K, options: WatchOptions): AsyncGenerator<StoreEvent<K>, void, undefined> {
    const source = {
      stream: STREAMS.resources,
      filter: `${PREFIX}${kind}.${options.name ?? "*"}`,
      afterSeq: Number(options.afterVersion ?? 0),
      isKeyed: true,
    };
    let live = options.afterVersion !== undefined;
    for await (const { message, seq } of follow(this.link, source, options.signal)) {
      const version = String(seq);
      if (message === undefined) {
        live = true;
        yield { type: "synced", version };
      } else if (!isDelete(message)) yield { type: "put", resource: decodeMessage(kind, message), version };
      else if (live) yield { type: "delete", name: nameIn(message), version };
    }
  }

  /**
   * The last message of a key, which may be the mark of a removal. Of several copies one may lag and have an older one: the leader
   * knows. The client library's own reading takes a stream that is not there, as in a server that starts, for a key that is not.
   */
  private read(key: string): Promise<StoredMessage | undefined> {
    const query = { lastOf: `${PREFIX}${key}` };
    return this.hasCopies
      ? readFromLeader(this.link, STREAMS.resources, query)
      : readStored(this.link, STREAMS.resources, query);
  }

  /** The resource as written behind this revision of its key, 0 for none; undefined if somebody else was first. */
  private async write<K extends Kind>(
    kind: K,
    resource: ResourceOf[K],
    lastSeq: number,
  ): Promise<ResourceOf[K] | undefined> {
    const data = encodeResource(kind, resource);
    try {
      const subject = `${PREFIX}${kind}.${nameOf(resource)}`;
      const seq = await writeAfter(this.link, { stream: STREAMS.resources, subject, data, lastSeq });
      return seq === undefined ? undefined : decodeResource(kind, data, String(seq));
    } catch (error) {
      if (!isTooLarge(error)) throw error;
      const mostBytes = this.link.nc.info?.max_payload ?? 0;
      throw tooLarge(kind, nameOf(resource), Buffer.byteLength(data), mostBytes);
    }
  }
}

function removal(): MsgHdrs {
  const header = headers();
  header.set(KV_OPERATION, "DEL");
  return header;
}

/** The server was set to take less in a message than is usual. */
function isTooLarge(error: unknown): boolean {
  return error instanceof NatsError && error.code === (ErrorCode.MaxPayloadExceeded as string);
}

function isDelete({ operation }: StoredMessage): boolean {
  return operation === "DEL" || operation === "PURGE";
}

function nameIn(message: StoredMessage): string {
  return message.subject.slice(message.subject.lastIndexOf(".") + 1);
}

function decodeMessage<K extends Kind>(kind: K, message: StoredMessage): ResourceOf[K] {
  return decodeResource(kind, new TextDecoder().decode(message.data), String(message.seq));
}
