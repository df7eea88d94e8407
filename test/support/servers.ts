import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureKeys } from "#common/adapters/nats/keys.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import type { TrustRoot } from "#common/adapters/nats/credentials.js";
import { natsServerConfig, type ClusterOptions } from "#common/adapters/nats/server-config.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { SystemClock } from "#common/adapters/memory/clock.js";

/** A TCP port nobody listens on at this moment. */
export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

/** A child process on a port of its own in a directory of its own; can be killed and started again on both. */
class TestServer {
  private child: ChildProcess | undefined;
  private output = "";

  constructor(
    readonly port: number,
    readonly dir: string,
    private readonly command: string,
    private readonly args: readonly string[],
  ) {}

  async start(): Promise<void> {
    const child = spawn(this.command, this.args, { stdio: ["ignore", "pipe", "pipe"] });
    this.child = child;
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (data: Buffer) => (this.output = (this.output + data.toString()).slice(-4000)));
    for (let attempt = 0; attempt < 2400; attempt += 1) {
      if (child.exitCode !== null) throw new Error(`${this.command} ended: ${this.output}`);
      if (await accepts(this.port)) return;
      await new SystemClock().sleep(25);
    }
    throw new Error(`${this.command} does not listen on ${this.port}: ${this.output}`);
  }

  /** SIGKILL, as a crash. */
  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    const { child } = this;
    this.child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  }

  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  /** Stops the process and removes its directory. */
  async stop(): Promise<void> {
    await this.kill();
    await rm(this.dir, { recursive: true, force: true });
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

/** A nats-server in operator mode with keys of its own. */
export class NatsTestServer extends TestServer {
  constructor(
    port: number,
    dir: string,
    configPath: string,
    readonly root: TrustRoot,
  ) {
    super(port, dir, "nats-server", ["-c", configPath]);
  }

  get url(): string {
    return `nats://127.0.0.1:${this.port}`;
  }

  /** A connection of Shoal's services, or with other creds. */
  connect(creds = this.root.serviceCreds, inboxPrefix?: string): Promise<NatsLink> {
    return this.open(creds, inboxPrefix === undefined ? {} : { inboxPrefix });
  }

  /** A connection for reading updates alone, as the aggregator has one. */
  connectForRuns(): Promise<NatsLink> {
    return this.open(this.root.serviceCreds, { isForRuns: true });
  }

  private open(creds: string, further: { inboxPrefix?: string; isForRuns?: boolean }): Promise<NatsLink> {
    const own = { name: "test", log: new MemoryLog(), clock: new SystemClock() };
    return NatsLink.connect({ servers: [this.url], creds, ...own, ...further });
  }
}

/** A server's files and ports; not started. */
async function layOut(
  root: TrustRoot | undefined,
  own: { websocket?: boolean; maxFileStoreBytes?: number; serverName?: string; cluster?: ClusterOptions },
): Promise<NatsTestServer> {
  const { websocket, ...options } = own;
  const dir = await mkdtemp(join(tmpdir(), "shoal-nats-"));
  const keys = root ?? (await ensureKeys(join(dir, "keys")));
  const port = await freePort();
  const websocketPort = websocket === true ? { websocketPort: await freePort() } : {};
  const config = join(dir, "nats.conf");
  const text = natsServerConfig({ root: keys, dataDir: dir, host: "127.0.0.1", port, ...websocketPort, ...options });
  await writeFile(config, text);
  return new NatsTestServer(port, dir, config, keys);
}

/** Starts a real nats-server with JetStream in a temporary directory. */
export async function startNats(
  options: { websocket?: boolean; maxFileStoreBytes?: number; root?: TrustRoot } = {},
): Promise<NatsTestServer> {
  const { root, ...own } = options;
  const server = await layOut(root, own);
  await server.start();
  return server;
}

/** Starts three servers that can keep copies of the same streams. Who connects to one is told of the others. */
export async function startNatsCluster(): Promise<NatsTestServer[]> {
  const ports = [await freePort(), await freePort(), await freePort()];
  const listeners = ports.map((port) => ({ host: "127.0.0.1", port }));
  const servers: NatsTestServer[] = [];
  for (const [i, listener] of listeners.entries()) {
    const peers = listeners.filter((peer) => peer !== listener);
    const own = { serverName: `shoal-${i}`, cluster: { ...listener, peers } };
    servers.push(await layOut(servers[0]?.root, own));
  }
  await Promise.all(servers.map((server) => server.start()));
  return servers;
}

/** Tries until the server is back, or a cluster that has just started has a leader. */
export async function insist<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await work();
    } catch (error) {
      if (attempt >= 150) throw error;
      await new SystemClock().sleep(200);
    }
  }
}

/** A redis-server that keeps nothing on disk. */
export class RedisTestServer extends TestServer {
  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }
}

/** Starts a real redis-server in a temporary directory. */
export async function startRedis(): Promise<RedisTestServer> {
  const dir = await mkdtemp(join(tmpdir(), "shoal-redis-"));
  const port = await freePort();
  const args = ["--port", String(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no"];
  const server = new RedisTestServer(port, dir, "redis-server", args);
  await server.start();
  return server;
}
