import type { TrustRoot } from "./credentials.js";

export interface NatsServerOptions {
  root: TrustRoot;
  /** Directory for JetStream and the account resolver. */
  dataDir: string;
  host: string;
  port: number;
  /** Bytes of the largest message; the default of 1 MiB is what pieces and chunks are cut for. */
  maxPayloadBytes?: number;
  /** Most bytes JetStream may keep on disk; absent lets the server decide. */
  maxFileStoreBytes?: number;
  /** Plain WebSocket listener; TLS ends in front of it. */
  websocketPort?: number;
  /** HTTP port for /varz and /healthz. */
  monitorPort?: number;
  serverName?: string;
}

/**
 * Text of a nats-server configuration in operator mode. The resolver keeps account JWTs on disk, so revocations outlive
 * a restart; the preloaded ones count only where it has nothing newer.
 */
export function natsServerConfig(options: NatsServerOptions): string {
  const { root } = options;
  const quoted = (value: string): string => JSON.stringify(value);
  const lines = [
    `server_name: ${quoted(options.serverName ?? "shoal")}`,
    `listen: ${quoted(`${options.host}:${options.port}`)}`,
    `max_payload: ${options.maxPayloadBytes ?? 1024 * 1024}`,
    `operator: ${root.operatorJwt}`,
    `system_account: ${root.systemAccount}`,
    `resolver {`,
    `  type: full`,
    `  dir: ${quoted(`${options.dataDir}/accounts`)}`,
    `  allow_delete: false`,
    `  interval: "2m"`,
    `}`,
    `resolver_preload {`,
    `  ${root.systemAccount}: ${root.systemAccountJwt}`,
    `  ${root.account}: ${root.accountJwt}`,
    `  ${root.deviceAccount}: ${root.deviceAccountJwt}`,
    `}`,
    `jetstream {`,
    `  store_dir: ${quoted(`${options.dataDir}/jetstream`)}`,
    ...(options.maxFileStoreBytes === undefined ? [] : [`  max_file_store: ${options.maxFileStoreBytes}`]),
    `}`,
  ];
  if (options.websocketPort !== undefined)
    lines.push(`websocket {`, `  listen: ${quoted(`${options.host}:${options.websocketPort}`)}`, `  no_tls: true`, `}`);
  if (options.monitorPort !== undefined) lines.push(`http: ${quoted(`${options.host}:${options.monitorPort}`)}`);
  return `${lines.join("\n")}\n`;
}
