import { connect, createServer, type Server, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** Bytes that pass at once: a message waits for no more of another one than that. */
const SLICE_BYTES = 2048;
/** By so much a timer may be late without the link being slower for it. */
const LATE_MS = 50;

/** A TCP relay to one address, each of whose connections carries so many bytes a second in either direction. */
export class SlowLink {
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;
  readonly #bytesPerSecond: number;
  #target: { host: string; port: number } | undefined;

  private constructor(server: Server, bytesPerSecond: number) {
    this.#server = server;
    this.#bytesPerSecond = bytesPerSecond;
  }

  static async open(bytesPerSecond: number): Promise<SlowLink> {
    const server = createServer();
    const link = new SlowLink(server, bytesPerSecond);
    server.on("connection", (client) => link.#relay(client));
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    return link;
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the link does not listen");
    return `nats://127.0.0.1:${address.port}`;
  }

  /** Where to relay to. */
  set target(url: string) {
    const { hostname, port } = new URL(url);
    this.#target = { host: hostname, port: Number(port) };
  }

  #relay(client: Socket): void {
    if (this.#target === undefined) {
      client.destroy();
      return;
    }
    const server = connect(this.#target);
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.on("error", () => socket.destroy());
      socket.on("close", () => {
        this.#sockets.delete(socket);
        client.destroy();
        server.destroy();
      });
    }
    void this.#carry(client, server);
    void this.#carry(server, client);
  }

  async #carry(from: Socket, to: Socket): Promise<void> {
    let freeAtMs = 0;
    try {
      for await (const data of from) {
        const bytes = data as Buffer;
        for (let at = 0; at < bytes.length; at += SLICE_BYTES) {
          const slice = bytes.subarray(at, at + SLICE_BYTES);
          freeAtMs = Math.max(freeAtMs, performance.now() - LATE_MS) + (1000 * slice.length) / this.#bytesPerSecond;
          const waitMs = freeAtMs - performance.now();
          if (waitMs > 0) await sleep(waitMs);
          to.write(slice);
        }
      }
    } catch {
      // The connection broke; its sockets go.
    }
    from.destroy();
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((done) => this.#server.close(done));
  }
}
