/** What every service is told by its environment. */
export interface ServiceConfig {
  natsUrls: string[];
  /** Creds file of the services' user. */
  natsCredsPath: string;
  /** Directory of operator and account seeds; registry only. */
  keysDir: string | undefined;
  redisUrl: string;
  grpcListen: ListenAddress;
  metricsListen: ListenAddress;
  /** Names this process among replicas. */
  replica: string;
  logLevel: "debug" | "info" | "warn" | "error";
  heartbeatMs: number;
  leaseMs: number;
  resyncMs: number;
  /** NATS addresses that join tokens tell devices. */
  publicNatsUrls: string[];
  /** Most bytes of the update log; undefined for no limit but the disk. */
  updatesMaxBytes: number | undefined;
  /** Copies of every stream in a NATS cluster. */
  streamReplicas: number;
}

export interface ListenAddress {
  host: string;
  port: number;
}

/** A setting that cannot be used: which, what it held, what to do. */
export interface ConfigViolation {
  name: string;
  value: string;
  remedy: string;
}

export type Environment = Readonly<Record<string, string | undefined>>;

const LEVELS = ["debug", "info", "warn", "error"] as const;

/** Reads the environment; all violations at once, so that one look is enough to repair it. */
export function readServiceConfig(
  env: Environment,
  defaults: { replica: string },
): { ok: true; config: ServiceConfig } | { ok: false; violations: ConfigViolation[] } {
  const read = new Reader(env);
  const natsUrls = read.urls("SHOAL_NATS_URL", "nats://127.0.0.1:4222", NATS_SCHEMES);
  const config: ServiceConfig = {
    natsUrls,
    natsCredsPath: read.required("SHOAL_NATS_CREDS", "set it to the path of the services' creds file"),
    keysDir: read.text("SHOAL_KEYS_DIR"),
    redisUrl: read.urls("SHOAL_REDIS_URL", "redis://127.0.0.1:6379", ["redis:", "rediss:"])[0] ?? "",
    grpcListen: read.listen("SHOAL_GRPC_LISTEN", "127.0.0.1:50051"),
    metricsListen: read.listen("SHOAL_METRICS_LISTEN", "127.0.0.1:9464"),
    replica: read.text("SHOAL_REPLICA") ?? defaults.replica,
    logLevel: read.oneOf("SHOAL_LOG_LEVEL", LEVELS, "info"),
    heartbeatMs: read.integer("SHOAL_HEARTBEAT_MS", 5000, 50, 3_600_000),
    leaseMs: read.integer("SHOAL_LEASE_MS", 15_000, 100, 86_400_000),
    resyncMs: read.integer("SHOAL_RESYNC_MS", 30_000, 100, 86_400_000),
    publicNatsUrls: read.urls("SHOAL_PUBLIC_NATS_URLS", natsUrls.join(","), NATS_SCHEMES),
    updatesMaxBytes: read.optionalInteger("SHOAL_UPDATES_MAX_BYTES", 1024 * 1024, Number.MAX_SAFE_INTEGER),
    streamReplicas: read.integer("SHOAL_STREAM_REPLICAS", 1, 1, 5),
  };
  if (config.leaseMs < 2 * config.heartbeatMs)
    read.refuse(
      "SHOAL_LEASE_MS",
      String(config.leaseMs),
      "must be at least twice SHOAL_HEARTBEAT_MS; one lost beat must not end a lease",
    );
  return read.violations.length === 0 ? { ok: true, config } : { ok: false, violations: read.violations };
}

const NATS_SCHEMES = ["nats:", "tls:", "ws:", "wss:"];

class Reader {
  readonly violations: ConfigViolation[] = [];

  constructor(private readonly env: Environment) {}

  refuse(name: string, value: string, remedy: string): void {
    this.violations.push({ name, value, remedy });
  }

  /** The value, or undefined for unset and empty. */
  text(name: string): string | undefined {
    const value = this.env[name]?.trim();
    return value === "" ? undefined : value;
  }

  required(name: string, remedy: string): string {
    const value = this.text(name);
    if (value === undefined) this.refuse(name, "", remedy);
    return value ?? "";
  }

  urls(name: string, fallback: string, schemes: readonly string[]): string[] {
    const urls = (this.text(name) ?? fallback).split(",").map((url) => url.trim());
    for (const url of urls) {
      if (!URL.canParse(url) || !schemes.includes(new URL(url).protocol))
        this.refuse(
          name,
          url,
          `must be a URL that begins with one of ${schemes.map((scheme) => `${scheme}//`).join(" ")}`,
        );
    }
    return urls;
  }

  listen(name: string, fallback: string): ListenAddress {
    const value = this.text(name) ?? fallback;
    const match = /^(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})$/.exec(value);
    const port = Number(match?.[2]);
    if (match?.[1] === undefined || port > 65535) {
      this.refuse(name, value, "must be host:port, e.g. 0.0.0.0:50051 (port 0 takes a free one)");
      return { host: "", port: 0 };
    }
    return { host: match[1].replace(/^\[|\]$/g, ""), port };
  }

  oneOf<const T extends string>(name: string, allowed: readonly T[], fallback: T): T {
    const value = this.text(name) ?? fallback;
    const found = allowed.find((candidate) => candidate === value);
    if (found === undefined) this.refuse(name, value, `must be one of ${allowed.join(", ")}`);
    return found ?? fallback;
  }

  integer(name: string, fallback: number, min: number, max: number): number {
    return this.optionalInteger(name, min, max) ?? fallback;
  }

  optionalInteger(name: string, min: number, max: number): number | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    const number = Number(value);
    if (!/^\d+$/.test(value) || number < min || number > max) {
      this.refuse(name, value, `must be a whole number from ${min} to ${max}`);
      return undefined;
    }
    return number;
  }
}
