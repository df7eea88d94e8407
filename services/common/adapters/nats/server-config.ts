import { createHash } from "node:crypto";
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
  /** HTTP listener for /varz, /jsz and /healthz. */
  monitor?: { host: string; port: number };
  serverName?: string;
  /** This server as one of several that keep copies of the same streams. */
  cluster?: ClusterOptions;
}

export interface ClusterOptions {
  host: string;
  port: number;
  /** Host and port of the other servers' cluster listeners. */
  peers: readonly { host: string; port: number }[];
}

/** The word by which servers of one trust root know each other. */
function routeSecret(root: TrustRoot): string {
  return createHash("sha256").update(`routes ${root.operatorSeed}`).digest("hex");
}

function clusterLines({ host, port, peers }: ClusterOptions, root: TrustRoot): string[] {
  const secret = routeSecret(root);
  const routes = peers.map((peer) => `    "nats-route://shoal:${secret}@${peer.host}:${peer.port}"`);
  return [
    `cluster {`,
    `  name: "shoal"`,
    `  listen: "${host}:${port}"`,
    `  authorization { user: "shoal", password: "${secret}", timeout: 5 }`,
    `  routes: [`,
    ...routes,
    `  ]`,
    `}`,
  ];
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
  if (options.cluster !== undefined) lines.push(...clusterLines(options.cluster, root));
  if (options.monitor !== undefined) lines.push(`http: ${quoted(`${options.monitor.host}:${options.monitor.port}`)}`);
  return `${lines.join("\n")}\n`;
}
