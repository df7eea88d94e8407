import { randomUUID } from "node:crypto";
import { ErrorCode, NatsError, type KV } from "nats";
import type { Kind, ResourceOf, ResourceStore, StoreEvent, WatchOptions, Written } from "../../ports/resource-store.js";
import { decodeResource, encodeResource, isSelected, nameOf, tooLarge, withIdentity } from "../resource-codecs.js";
import type { NatsLink } from "./connection.js";
import { follow, readPast, type StoredMessage } from "./follow.js";
import { BUCKET, STREAMS } from "./streams.js";

const WRONG_LAST_SEQUENCE = 10071;
const PREFIX = `$KV.${BUCKET}.`;

/** ResourceStore on a NATS KV bucket: key `<Kind>.<name>`, value JSON, version = sequence in the stream. */
export class NatsResourceStore implements ResourceStore {
  private constructor(
    private readonly link: NatsLink,
    private readonly kv: KV,
  ) {}

  /** The streams must exist (ensureStreams). */
  static async open(link: NatsLink): Promise<NatsResourceStore> {
    const { config } = await (await link.manager()).streams.info(STREAMS.resources);
    // Of several copies one may lag behind what was acknowledged, and say that a resource does not exist: the leader knows.
    const allow_direct = config.num_replicas <= 1;
    return new NatsResourceStore(link, await link.jetstream().views.kv(BUCKET, { bindOnly: true, allow_direct }));
  }

  async get<K extends Kind>(kind: K, name: string): Promise<ResourceOf[K] | undefined> {
    const entry = await this.link.call(() => this.kv.get(`${kind}.${name}`));
    if (entry?.operation !== "PUT") return undefined;
    return decodeResource(kind, entry.string(), String(entry.revision));
  }

  async list<K extends Kind>(
    kind: K,
    options?: { labels?: Record<string, string>; prefix?: string },
  ): Promise<{ items: ResourceOf[K][]; version: string }> {
    const { messages, headSeq } = await readPast(this.link, {
      stream: STREAMS.resources,
      filter: `${PREFIX}${kind}.*`,
      afterSeq: 0,
    });
    // A resource written during the read comes twice; the later state counts.
    const byName = new Map(messages.map((message) => [nameIn(message), message]));
    const items = [...byName]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .flatMap(([, message]) => (isDelete(message) ? [] : [decodeMessage(kind, message)]))
      .filter((resource) => isSelected(resource, options));
    return { items, version: String(headSeq) };
  }

  create<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>> {
    const whole = withIdentity<K>(resource, randomUUID(), this.link.clock.nowMs());
    return this.write(kind, whole, (key, data) => this.kv.create(key, data), "Exists");
  }

  async update<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>> {
    const version = Number(resource.metadata?.resourceVersion ?? "");
    // Sequence 0 would mean "must not exist" to the server.
    const written: Written<K> =
      Number.isSafeInteger(version) && version > 0
        ? await this.write(kind, resource, (key, data) => this.kv.update(key, data, version), "Conflict")
        : { ok: false, reason: "Conflict" };
    if (written.ok) return written;
    return (await this.get(kind, nameOf(resource))) === undefined ? { ok: false, reason: "NotFound" } : written;
  }

  async delete(
    kind: Kind,
    name: string,
    resourceVersion?: string,
  ): Promise<{ ok: true } | { ok: false; reason: "Conflict" | "NotFound" }> {
    const key = `${kind}.${name}`;
    for (;;) {
      const entry = await this.link.call(() => this.kv.get(key));
      if (entry?.operation !== "PUT") return { ok: false, reason: "NotFound" };
      if (resourceVersion !== undefined && resourceVersion !== String(entry.revision))
        return { ok: false, reason: "Conflict" };
      try {
        await this.link.call(() => this.kv.delete(key, { previousSeq: entry.revision }));
        return { ok: true };
      } catch (error) {
        if (!isLostRace(error)) throw error;
      }
    }
  }

  async *watch<K extends Kind>(kind: K, options: WatchOptions): AsyncGenerator<StoreEvent<K>, void, undefined> {
    const source = {
      stream: STREAMS.resources,
      filter: `${PREFIX}${kind}.${options.name ?? "*"}`,
      afterSeq: Number(options.afterVersion ?? 0),
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

  private async write<K extends Kind>(
    kind: K,
    resource: ResourceOf[K],
    put: (key: string, data: string) => Promise<number>,
    lostRace: "Exists" | "Conflict",
  ): Promise<Written<K>> {
    const text = encodeResource(kind, resource);
    try {
      const key = `${kind}.${nameOf(resource)}`;
      const seq = await this.link.call(() => put(key, text));
      return { ok: true, resource: decodeResource(kind, text, String(seq)) };
    } catch (error) {
      if (isLostRace(error)) return { ok: false, reason: lostRace };
      if (isTooLarge(error)) {
        const mostBytes = this.link.nc.info?.max_payload ?? 0;
        throw tooLarge(kind, nameOf(resource), Buffer.byteLength(text), mostBytes);
      }
      throw error;
    }
  }
}

function isLostRace(error: unknown): boolean {
  return error instanceof NatsError && error.api_error?.err_code === WRONG_LAST_SEQUENCE;
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
