import { connect, createServer, type Socket } from "node:net";

/** A TCP relay to one address on a port of its own; how bytes pass is up to who extends it. */
export abstract class Relay {
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((client) => this.#relay(client));
  #target: { host: string; port: number } | undefined;

  /** Passes on what comes from one socket to the other; "up" is from the client. Called once a way for every connection. */
  protected abstract carry(from: Socket, to: Socket, way: "up" | "down"): void;

  protected async listen(): Promise<void> {
    await new Promise<void>((done) => this.#server.listen(0, "127.0.0.1", done));
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the relay does not listen");
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
    this.carry(client, server, "up");
    this.carry(server, client, "down");
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((done) => this.#server.close(done));
  }
}
