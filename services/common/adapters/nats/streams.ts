import { DiscardPolicy, nanos, NatsError, RetentionPolicy, StorageType, type StreamConfig } from "nats";
import { subjects } from "../../domain/subjects.js";
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
  /** Most bytes of the update log; a full one refuses (never drops) updates. Default: no limit but the disk. */
  updatesMaxBytes?: number;
  /** Copies of every stream in a NATS cluster. Default 1. */
  replicas?: number;
}

const STREAM_EXISTS_OTHERWISE = 10058;
/** Within this time a message id is remembered: a retry returns the first sequence. */
export const DUPLICATE_WINDOW_MS = 20 * 60_000;

/** Creates the streams, or brings them to these settings. Any number of replicas may do so at once. */
export async function ensureStreams(link: NatsLink, options: StreamOptions = {}): Promise<void> {
  const replicas = options.replicas ?? 1;
  await link.jetstream().views.kv(BUCKET, { history: 1, storage: StorageType.File, replicas });
  for (const stream of streamConfigs(options)) await ensureStream(link, { ...stream, num_replicas: replicas });
}

type NamedStream = Partial<StreamConfig> & { name: string };

function streamConfigs(options: StreamOptions): NamedStream[] {
  const common = {
    retention: RetentionPolicy.Limits,
    storage: StorageType.File,
    discard: DiscardPolicy.New,
    allow_direct: true,
  };
  return [
    { ...common, name: STREAMS.blobs, subjects: ["shoal.blob.>"], max_msgs_per_subject: 1 },
    {
      ...common,
      name: STREAMS.updates,
      subjects: [subjects.allUpdates],
      max_bytes: options.updatesMaxBytes ?? -1,
      duplicate_window: nanos(DUPLICATE_WINDOW_MS),
    },
    { ...common, name: STREAMS.events, subjects: ["shoal.event.>"] },
    { ...common, name: STREAMS.series, subjects: ["shoal.series.>"] },
  ];
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
