import { DiscardPolicy, nanos, NatsError, RetentionPolicy, StorageType, type StreamConfig } from "nats";
import { MAX_UPDATE_MESSAGE_BYTES, subjects } from "../../domain/subjects.js";
import { CodedError } from "../coded-error.js";
import type { NatsLink } from "./connection.js";

/** Names of the streams and the subjects that only the control plane uses. */
export const STREAMS = {
  resources: "KV_resources",
  blobs: "BLOBS",
  updates: "UPDATES",
  events: "EVENTS",
  series: "SERIES",
};
export const BUCKET = "resources";

export interface StreamOptions {
  /**
   * Most bytes of the update log; a full one refuses (never drops) updates. Default: what the log has already, else
   * DEFAULT_UPDATES_MAX_BYTES, halved until the server has the storage for it.
   */
  updatesMaxBytes?: number;
  /** Copies of every stream in a NATS cluster. Default 1. */
  replicas?: number;
}

/** 16 GiB: three rounds of ten devices with a model of 124 million parameters in fp32 (5 GiB a round). */
export const DEFAULT_UPDATES_MAX_BYTES = 16 * 1024 ** 3;
const LEAST_UPDATES_MAX_BYTES = 64 * 1024 ** 2;

const STREAM_EXISTS_OTHERWISE = 10058;
const NO_STREAM = 10059;
/** The server's or the account's storage does not hold what the stream would reserve. */
const TOO_LITTLE_STORAGE = new Set([10047, 10028]);
/** Within this time a message id is remembered: a retry returns the first sequence. */
export const DUPLICATE_WINDOW_MS = 20 * 60_000;

/** Creates the streams, or brings them to these settings. Any number of replicas may do so at once. */
export async function ensureStreams(link: NatsLink, options: StreamOptions = {}): Promise<void> {
  const replicas = options.replicas ?? 1;
  await link.jetstream().views.kv(BUCKET, { history: 1, storage: StorageType.File, replicas });
  for (const stream of streamConfigs()) await ensureStream(link, { ...stream, num_replicas: replicas });
  await ensureUpdates(link, options, replicas);
}

/** A limit that was asked for holds or fails; the default one gives way to what storage the server has. */
async function ensureUpdates(
  link: NatsLink,
  options: StreamOptions,
  replicas: number,
  further: Partial<StreamConfig> = {},
): Promise<void> {
  const asked = options.updatesMaxBytes;
  let wanted = asked ?? DEFAULT_UPDATES_MAX_BYTES;
  for (;;) {
    // Without a setting the limit that the log has stays: replicas that start together must not halve each other's.
    const present = await limitOfUpdates(link);
    const maxBytes = asked ?? (present === undefined || present <= 0 ? wanted : present);
    const config = { ...updatesConfig(maxBytes), ...further, num_replicas: replicas };
    try {
      // To add what is there already would need room for it a second time.
      const { streams } = await link.manager();
      await (present === undefined ? streams.add(config) : streams.update(config.name, config));
      return;
    } catch (error) {
      const code = error instanceof NatsError ? (error.api_error?.err_code ?? 0) : 0;
      // Another replica was first: with its own settings, or with the storage that was free.
      const wasFirst = present === undefined && (await limitOfUpdates(link)) !== undefined;
      if (wasFirst && (code === STREAM_EXISTS_OTHERWISE || TOO_LITTLE_STORAGE.has(code))) continue;
      if (!TOO_LITTLE_STORAGE.has(code)) throw error;
      if (asked !== undefined || wanted <= LEAST_UPDATES_MAX_BYTES) {
        const message = `NATS has no storage for an update log of ${maxBytes} bytes: free disk there or lower SHOAL_UPDATES_MAX_BYTES (of a gateway: --log-bytes)`;
        throw new CodedError("NO_STORAGE", message, { cause: error });
      }
      wanted /= 2;
    }
  }
}

/** The limit of the log as it is, -1 for none; undefined if there is no log yet. */
async function limitOfUpdates(link: NatsLink): Promise<number | undefined> {
  const manager = await link.manager();
  try {
    return (await manager.streams.info(STREAMS.updates)).config.max_bytes;
  } catch (error) {
    if (error instanceof NatsError && error.api_error?.err_code === NO_STREAM) return undefined;
    throw error;
  }
}

/**
 * Creates the update log alone, as a site's server has it. What is older than `maxAgeMs` goes by itself; a full one refuses.
 * @param maxBytes as StreamOptions.updatesMaxBytes.
 */
export async function ensureSiteLog(link: NatsLink, maxAgeMs: number, maxBytes?: number): Promise<void> {
  const options = maxBytes === undefined ? {} : { updatesMaxBytes: maxBytes };
  await ensureUpdates(link, options, 1, { max_age: nanos(maxAgeMs) });
}

type NamedStream = Partial<StreamConfig> & { name: string };

const COMMON = {
  retention: RetentionPolicy.Limits,
  storage: StorageType.File,
  discard: DiscardPolicy.New,
  allow_direct: true,
};

function streamConfigs(): NamedStream[] {
  return [
    { ...COMMON, name: STREAMS.blobs, subjects: ["shoal.blob.>"], max_msgs_per_subject: 1 },
    { ...COMMON, name: STREAMS.events, subjects: ["shoal.event.>"] },
    { ...COMMON, name: STREAMS.series, subjects: ["shoal.series.>"] },
  ];
}

function updatesConfig(maxBytes: number): NamedStream {
  return {
    ...COMMON,
    name: STREAMS.updates,
    subjects: [...subjects.loggedUpdates],
    max_bytes: maxBytes,
    max_msg_size: MAX_UPDATE_MESSAGE_BYTES,
    duplicate_window: nanos(DUPLICATE_WINDOW_MS),
  };
}

async function ensureStream(link: NatsLink, config: NamedStream): Promise<void> {
  const manager = await link.manager();
  try {
    await manager.streams.add(config);
  } catch (error) {
    if (!(error instanceof NatsError) || error.api_error?.err_code !== STREAM_EXISTS_OTHERWISE) throw error;
    await manager.streams.update(config.name, config);
  }
}
