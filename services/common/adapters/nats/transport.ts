import { createConnection, type Socket } from "node:net";
import { Events, type ConnectionOptions, type NatsConnection } from "nats";
import { DataBuffer } from "nats/lib/nats-base-client/databuffer.js";
import { MsgHdrsImpl } from "nats/lib/nats-base-client/headers.js";
import { NatsConnectionImpl } from "nats/lib/nats-base-client/nats.js";
import { setTransportFactory } from "nats/lib/nats-base-client/transport.js";
import { NodeTransport, nodeResolveHost } from "nats/lib/src/node_transport.js";
import { ReadSlab, type SlabMemory } from "./read-slab.js";

/** Options of a connection. The library keeps what it does not know, and hands it to the transport of every attempt. */
export interface SlabOptions extends ConnectionOptions {
  /** Of the slabs that are read into; unless given they are new, and collected once nobody has a view of them. */
  slabs?: SlabMemory | undefined;
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
 * The client library's transport over a socket that reads whole messages into slabs. Left to itself it gets 64 KiB at a time, and
 * a message of 512 KiB is put together in a buffer that grows four times.
 */
class SlabTransport extends NodeTransport {
  /** Writes them one after the other; the small ones between two large ones together. */
  sendPieces(pieces: readonly Uint8Array[]): void {
    // One that was closed meanwhile has no socket any more.
    if (this.isClosed) return;
    const { socket } = this;
    const small = new DataBuffer();
    socket.cork();
    for (const piece of pieces) {
      if (piece.length < LARGE_PIECE_BYTES) {
        small.fill(piece);
        continue;
      }
      this.send(small.drain());
      this.send(piece);
    }
    this.send(small.drain());
    socket.uncork();
  }

  override send(frame: Uint8Array): void {
    if (frame.length > 0) super.send(frame);
  }

  override dial({ hostname, port }: { hostname: string; port: number }): Promise<Socket> {
    const slab = new ReadSlab((this.options as SlabOptions).slabs);
    const onread = {
      buffer: () => slab.room(),
      callback: (count: number) => {
        const whole = slab.take(count);
        if (whole.length > 0) socket.emit("data", whole);
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

const decodeStatus = MsgHdrsImpl.decode.bind(MsgHdrsImpl);
/** Characters of a header's name, which the library would have at once. */
const HEADER_NAME = /^[!-9;-~]+$/;

/**
 * Headers without the lines that cannot be read. Whoever may publish a message chooses its headers, and the library throws in the
 * midst of its reader at a name or a value that is not as it should be: the connection would stand and never hear anything again. It
 * also goes through all names at every line: a second for what the server takes as headers.
 */
function decodeHeaders(bytes: Uint8Array): MsgHdrsImpl {
  const [status = "", ...lines] = Buffer.from(bytes).toString("utf8").split("\r\n");
  const decoded = decodeStatus(Buffer.from(`${status}\r\n\r\n`));
  for (const line of lines) {
    const colon = line.indexOf(":");
    const [name, value] = [line.slice(0, Math.max(0, colon)), line.slice(colon + 1).trim()];
    if (!HEADER_NAME.test(name) || /[\r\n]/.test(value)) continue;
    const values = decoded.headers.get(name);
    if (values === undefined) decoded.headers.set(name, [value]);
    else values.push(value);
  }
  return decoded;
}
MsgHdrsImpl.decode = decodeHeaders;

/** As the library's own `connect`, for connections that carry large messages. */
export async function connect(options: SlabOptions): Promise<NatsConnection> {
  setTransportFactory({ factory: () => new SlabTransport(), dnsResolveFn: nodeResolveHost });
  const connection = await NatsConnectionImpl.connect(options);
  if (!(connection instanceof NatsConnectionImpl)) return connection;
  const { protocol } = connection;
  const outbound = new Outbound(() => protocol.transport);
  // An empty piece would count as one that is about to be sent.
  if (protocol.outbound.size() > 0) outbound.fill(protocol.outbound.drain());
  protocol.outbound = outbound;
  const processMsg = protocol.processMsg.bind(protocol);
  protocol.processMsg = (message, data) => {
    try {
      processMsg(message, data);
    } catch (error) {
      // No message may end the reader, whatever whoever listens makes of it.
      protocol.dispatchStatus({ type: Events.Error, data: `a message was not taken: ${String(error)}` });
    }
  };
  return connection;
}
