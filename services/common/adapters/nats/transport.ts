import { createConnection, type Socket } from "node:net";
import type { ConnectionOptions, NatsConnection } from "nats";
import { DataBuffer } from "nats/lib/nats-base-client/databuffer.js";
import { NatsConnectionImpl } from "nats/lib/nats-base-client/nats.js";
import { setTransportFactory } from "nats/lib/nats-base-client/transport.js";
import { NodeTransport, nodeResolveHost } from "nats/lib/src/node_transport.js";

/** What is read at once at first, as much as a socket of Node reads. */
const LEAST_SLAB_BYTES = 64 * 1024;
/** And at most, once reads have filled all the room they had. */
const MOST_SLAB_BYTES = 4 * 1024 ** 2;

/**
 * The memory that a socket is read into. What a large read brings stays where it lies and is handed out without a copy; the
 * room grows with them, so that a message is seldom cut into many. What a small read brings is copied, so that a quiet connection
 * needs no other slab. Who keeps a small message for long copies it: it may lie in a slab, which it would keep.
 */
export class ReadSlab {
  #bytes = new Uint8Array(LEAST_SLAB_BYTES);
  #used = 0;

  /** Where the next bytes go. */
  room(): Uint8Array {
    return this.#bytes.subarray(this.#used);
  }

  /** The first `count` bytes of the room, which are the caller's from now on. */
  take(count: number): Uint8Array {
    const end = this.#used + count;
    const size = this.#bytes.length;
    const isLarge = 2 * count > LEAST_SLAB_BYTES;
    const taken = isLarge ? this.#bytes.subarray(this.#used, end) : this.#bytes.slice(this.#used, end);
    if (isLarge) this.#used = end;
    const isTooSmall = end === size;
    // With less room than a quarter, reads would be cut short by it.
    if (isTooSmall || 4 * (size - this.#used) < size) {
      const next = isTooSmall ? Math.min(2 * size, MOST_SLAB_BYTES) : size;
      this.#bytes = new Uint8Array(Buffer.allocUnsafeSlow(next).buffer);
      this.#used = 0;
    }
    return taken;
  }
}

/** A piece of so many bytes is sent from where it lies. */
const LARGE_PIECE_BYTES = 32 * 1024;

/**
 * What a connection has to send. The library puts it together in new memory before each write; a large piece goes to the
 * socket as it is, so whoever publishes one leaves its bytes alone until it is answered.
 */
class Outbound extends DataBuffer {
  constructor(private readonly transport: () => unknown) {
    super();
  }

  override drain(n?: number): Uint8Array {
    const transport = this.transport();
    const isLarge = this.buffers.some(({ length }) => length >= LARGE_PIECE_BYTES);
    if (n !== undefined || !isLarge || !(transport instanceof SlabTransport)) return super.drain(n);
    const pieces = this.buffers;
    this.buffers = [];
    this.byteLength = 0;
    transport.sendPieces(pieces);
    return new Uint8Array(0);
  }
}

/**
 * The client library's transport over a socket that reads into slabs. Left to itself it gets 64 KiB at a time, and a message of
 * 512 KiB is put together in a buffer that grows four times.
 */
class SlabTransport extends NodeTransport {
  /** Writes them one after the other; the small ones between two large ones together. */
  sendPieces(pieces: readonly Uint8Array[]): void {
    const small = new DataBuffer();
    this.socket.cork();
    for (const piece of pieces) {
      if (piece.length < LARGE_PIECE_BYTES) {
        small.fill(piece);
        continue;
      }
      this.send(small.drain());
      this.send(piece);
    }
    this.send(small.drain());
    this.socket.uncork();
  }

  override send(frame: Uint8Array): void {
    if (frame.length > 0) super.send(frame);
  }

  override dial({ hostname, port }: { hostname: string; port: number }): Promise<Socket> {
    const slab = new ReadSlab();
    const onread = {
      buffer: () => slab.room(),
      callback: (count: number) => {
        socket.emit("data", slab.take(count));
        return true;
      },
    };
    const socket = createConnection({ host: hostname, port, onread });
    socket.setNoDelay(true);
    return new Promise((resolve, reject) => {
      let failure: Error | undefined;
      // Who waits for the connection is done with the socket when it stands, and the library listens from then on.
      socket.once("connect", () => {
        socket.removeAllListeners();
        resolve(socket);
      });
      socket.on("error", (error) => {
        failure = error;
      });
      socket.once("close", () => {
        socket.removeAllListeners();
        reject(failure ?? new Error("the connection closed before it stood"));
      });
    });
  }
}

/** As the library's own `connect`, for connections that carry large messages. */
export async function connect(options: ConnectionOptions): Promise<NatsConnection> {
  setTransportFactory({ factory: () => new SlabTransport(), dnsResolveFn: nodeResolveHost });
  const connection = await NatsConnectionImpl.connect(options);
  if (!(connection instanceof NatsConnectionImpl)) return connection;
  const { protocol } = connection;
  const outbound = new Outbound(() => protocol.transport);
  // An empty piece would count as one that is about to be sent.
  if (protocol.outbound.size() > 0) outbound.fill(protocol.outbound.drain());
  protocol.outbound = outbound;
  return connection;
}
