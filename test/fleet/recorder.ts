import { createServer, connect, type Server, type Socket } from "node:net";

/** A TCP relay that keeps every byte that passes, in both directions: what the agents really say on the wire. */
export class Recorder {
  readonly up: Buffer[] = [];
  readonly down: Buffer[] = [];
  readonly #sockets = new Set<Socket>();
  #target: { host: string; port: number } | undefined;

  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async open(): Promise<Recorder> {
    const server = createServer();
    const recorder = new Recorder(server);
    server.on("connection", (client) => recorder.#relay(client));
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    return recorder;
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the recorder does not listen");
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
    client.on("data", (bytes) => {
      this.up.push(bytes);
      server.write(bytes);
    });
    server.on("data", (bytes) => {
      this.down.push(bytes);
      client.write(bytes);
    });
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((done) => this.#server.close(done));
  }
}

/**
 * Pieces of `text` found in `captured`, as they stand, in hexadecimal or in base64 (each alignment).
 * @param length bytes of a piece; short enough to catch a sentence, long enough not to be met by chance
 */
export function leakedPieces(captured: Buffer, text: string, length = 20): string[] {
  const bytes = Buffer.from(text, "utf8");
  const wanted = new Set<string>();
  for (let i = 0; i + length <= bytes.length; i++) wanted.add(bytes.toString("latin1", i, i + length));
  const leaked = new Set<string>();
  const scan = (haystack: string): void => {
    for (let i = 0; i + length <= haystack.length; i++) {
      const piece = haystack.slice(i, i + length);
      if (wanted.has(piece)) leaked.add(piece);
    }
  };
  scan(captured.toString("latin1"));
  for (const run of captured.toString("latin1").match(/[A-Za-z0-9+/_-]{28,}/g) ?? []) {
    for (let skip = 0; skip < 4; skip++) scan(Buffer.from(run.slice(skip), "base64").toString("latin1"));
    scan(Buffer.from(run, "hex").toString("latin1"));
  }
  return [...leaked];
}
