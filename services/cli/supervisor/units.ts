import type { Health } from "./health.js";
import type { PortOfName } from "./decision.js";

/** A child process of `up`. */
export interface Unit {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly health: Health;
  /** Asked again and again once it has answered; a unit that falls silent is killed and started again. */
  readonly alive?: Health;
}

const SERVICES = ["registry", "scheduler", "aggregator", "telemetry"] as const;
export type ServiceName = (typeof SERVICES)[number];

/** Where everything listens that only this machine uses. */
export const HOST = "127.0.0.1";

/** "registry-0", "registry-1"... */
export const replicaName = (service: ServiceName, index: number): string => `${service}-${index}`;

/** Names of the NATS servers: "nats", or "nats-0", "nats-1"... of a cluster. */
export const natsNames = (nodes: number): string[] =>
  nodes === 1 ? ["nats"] : Array.from({ length: nodes }, (_, i) => `nats-${i}`);

/** Name of the port at which a server of a cluster listens for the others. */
export const clusterPortName = (name: string): string => `${name}.cluster`;

/** Name of the port at which a server tells of itself. */
export const monitorPortName = (name: string): string => `${name}.monitor`;

/** How many NATS servers a directory was made for, by the ports it remembers; undefined for a new one. */
export function natsNodesOf(ports: PortOfName): number | undefined {
  if (ports["nats"] !== undefined) return 1;
  const nodes = Object.keys(ports).filter((name) => /^nats-\d+$/.test(name)).length;
  return nodes === 0 ? undefined : nodes;
}

/** Names of all ports that `replicas` of each service and `natsNodes` servers need. */
export function portNames(replicas: number, natsNodes = 1): string[] {
  const servers = natsNames(natsNodes);
  const names = [...servers, "redis", ...servers.map(monitorPortName)];
  if (natsNodes > 1) names.push(...servers.map(clusterPortName));
  for (const service of SERVICES) {
    for (let i = 0; i < replicas; i++) {
      names.push(`${replicaName(service, i)}.grpc`, `${replicaName(service, i)}.metrics`);
    }
  }
  return names;
}

/** What the units need to know of the machine. */
export interface UnitFacts {
  readonly replicas: number;
  readonly ports: PortOfName;
  readonly nats: {
    readonly command: string;
    /** Address at which devices and services reach it. */
    readonly host: string;
    /** A configuration for each server. */
    readonly configFiles: readonly string[];
    readonly credsFile: string;
  };
  readonly redis: { readonly command: string };
  readonly keysDir: string;
  /** The node program and the folder of the compiled services. */
  readonly node: string;
  readonly servicesDir: string;
  /** Settings handed through to the services, e.g. SHOAL_LOG_LEVEL. */
  readonly settings: Readonly<Record<string, string>>;
}

export const portOf = (ports: PortOfName, name: string): number => {
  const port = ports[name];
  if (port === undefined) throw new RangeError(`no port was chosen for ${name}`);
  return port;
};

/** Host and port of a gRPC or metrics listener. */
export function addressOf(ports: PortOfName, service: ServiceName, index: number, kind: "grpc" | "metrics"): string {
  return `${HOST}:${portOf(ports, `${replicaName(service, index)}.${kind}`)}`;
}

/** Addresses of all NATS servers, separated by commas. */
export const natsUrls = ({ ports, nats }: Pick<UnitFacts, "ports" | "nats">): string =>
  natsNames(nats.configFiles.length)
    .map((name) => `nats://${nats.host}:${portOf(ports, name)}`)
    .join(",");
export const redisUrl = (ports: PortOfName): string => `redis://${HOST}:${portOf(ports, "redis")}`;

/** Addresses of all replicas by service. */
export function addresses(
  ports: PortOfName,
  replicas: number,
  kind: "grpc" | "metrics",
): Record<ServiceName, string[]> {
  const of = (service: ServiceName): string[] =>
    Array.from({ length: replicas }, (_, i) => addressOf(ports, service, i, kind));
  return {
    registry: of("registry"),
    scheduler: of("scheduler"),
    aggregator: of("aggregator"),
    telemetry: of("telemetry"),
  };
}

/** All units in stages: each stage needs only those before it, and its units start at the same time. */
export function planUnits(facts: UnitFacts): Unit[][] {
  const { ports, replicas } = facts;
  const { host, configFiles } = facts.nats;
  const nats = natsNames(configFiles.length).map((name, i): Unit => ({
    name,
    command: facts.nats.command,
    args: ["-c", configFiles[i] ?? ""],
    env: {},
    health: { kind: "tcp", host, port: portOf(ports, name), send: "", expect: "INFO" },
    // JetStream's own page: nats-server 2.9 can stand still in it after a full disk, while all else says it is well.
    alive: { kind: "http", url: `http://${HOST}:${portOf(ports, monitorPortName(name))}/jsz` },
  }));
  const redisPort = portOf(ports, "redis");
  const redis: Unit = {
    name: "redis",
    command: facts.redis.command,
    // Redis holds only the work queue, which a resync fills again: nothing of it is worth the disk.
    args: ["--bind", HOST, "--port", String(redisPort), "--save", "", "--appendonly", "no"],
    env: {},
    health: { kind: "tcp", host: HOST, port: redisPort, send: "PING\r\n", expect: "+PONG" },
  };
  const service = (name: ServiceName, index: number): Unit => ({
    name: replicaName(name, index),
    command: facts.node,
    args: [`${facts.servicesDir}/${name}/main.js`],
    env: {
      SHOAL_PUBLIC_NATS_URLS: natsUrls(facts),
      SHOAL_STREAM_REPLICAS: String(Math.min(3, configFiles.length)),
      ...facts.settings,
      SHOAL_NATS_URL: natsUrls(facts),
      SHOAL_NATS_CREDS: facts.nats.credsFile,
      SHOAL_REDIS_URL: redisUrl(ports),
      SHOAL_GRPC_LISTEN: addressOf(ports, name, index, "grpc"),
      SHOAL_METRICS_LISTEN: addressOf(ports, name, index, "metrics"),
      SHOAL_REPLICA: replicaName(name, index),
      ...(name === "registry" ? { SHOAL_KEYS_DIR: facts.keysDir } : {}),
    },
    health: { kind: "http", url: `http://${addressOf(ports, name, index, "metrics")}/readyz` },
  });
  const replicasOf = (name: ServiceName): Unit[] => Array.from({ length: replicas }, (_, i) => service(name, i));
  const rest = SERVICES.filter((name) => name !== "registry");
  return [[...nats, redis], replicasOf("registry"), rest.flatMap(replicasOf)];
}
