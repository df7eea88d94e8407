import test from "ava";
import fc from "fast-check";
import { NatsConnectionImpl } from "nats/lib/nats-base-client/nats.js";
import { NodeTransport } from "nats/lib/src/node_transport.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { ReadSlab } from "#common/adapters/nats/read-slab.js";
import { createRng } from "#common/domain/rng.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { startNats } from "#test/support/servers.js";

const text = (line: string): Buffer => Buffer.from(line, "latin1");

/** A message of the protocol whose payload holds lines that look like messages. */
function message(size: number, value: number, isHeaded: boolean): Buffer {
  const payload = Buffer.alloc(size, value % 7 === 0 ? "MSG a 1 9999\r\n" : value);
  const head = isHeaded ? `HMSG any.subject 12 reply.to 0 ${size}` : `MSG any.subject 12 ${size}`;
  return Buffer.concat([text(`${head}\r\n`), payload, text("\r\n")]);
}

/** What a socket does with a stream: fills some of the room at a time, `share` of it at most. @returns what is handed out. */
function feed(slab: ReadSlab, stream: Buffer, shareOf: (read: number) => number): Uint8Array[] {
  const frames: Uint8Array[] = [];
  let read = 0;
  for (let at = 0; at < stream.length; read++) {
    const room = slab.room();
    const count = Math.min(stream.length - at, Math.max(1, Math.floor(shareOf(read) * room.length)));
    room.set(stream.subarray(at, at + count));
    at += count;
    frames.push(slab.take(count));
  }
  return frames.filter(({ length }) => length > 0);
}

const pieces = fc.array(
  fc.oneof(
    fc.record({
      size: fc.oneof(fc.nat(40), fc.nat(70_000), fc.constantFrom(0, 32_768, 65_536, 524_288, 1_048_576)),
      isHeaded: fc.boolean(),
    }),
    fc.constantFrom("PING\r\n", "+OK\r\n", 'INFO {"a":"MSG b 1 5"} \r\n', "-ERR 'x'\r\n"),
  ),
  { minLength: 1, maxLength: 25 },
);

test("whole messages are handed out and stay as they came, wherever reads cut them", (t) => {
  fc.assert(
    fc.property(pieces, fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1 }), (some, shares) => {
      const messages = some.map((one, i) =>
        typeof one === "string" ? text(one) : message(one.size, i + 1, one.isHeaded),
      );
      const stream = Buffer.concat(messages);
      // So small reads would take too many turns for a large stream.
      const least = stream.length / 2000 / 65_536;
      const frames = feed(new ReadSlab(), stream, (read) => Math.max(least, shares[read % shares.length] ?? 1));
      t.is(Buffer.compare(Buffer.concat(frames), stream), 0);
      const ends = new Set<number>();
      messages.reduce((end, { length }) => (ends.add(end + length), end + length), 0);
      frames.reduce((end, { length }) => {
        t.true(ends.has(end + length));
        return end + length;
      }, 0);
    }),
    { numRuns: 150 },
  );
});

test("a message is handed out as soon as it is complete", (t) => {
  const slab = new ReadSlab();
  const two = Buffer.concat([message(300_000, 1, false), message(10, 2, true)]);
  const frames = feed(slab, two, () => 1);
  t.is(
    frames.reduce((sum, { length }) => sum + length, 0),
    two.length,
  );
});

test("what no slab holds, and what is no such protocol, is handed out as it comes", (t) => {
  const huge = Buffer.concat([message(20, 1, false), message(9_000_000, 2, true), message(30, 3, false)]);
  const frames = feed(new ReadSlab(), huge, () => 1);
  t.is(Buffer.compare(Buffer.concat(frames), huge), 0);
  t.true(frames.length > 3);
  for (const foreign of [
    "MSG any 12 many\r\nrest",
    "MSG\r\n",
    `${"x".repeat(70_000)} `,
    "HMSG a 1 123456789012\r\nrest",
  ]) {
    const bytes = Buffer.concat([message(50, 1, false), text(foreign)]);
    t.is(Buffer.compare(Buffer.concat(feed(new ReadSlab(), bytes, () => 1)), bytes), 0, foreign.slice(0, 20));
  }
});

test("the room grows where reads fill it, up to 4 MiB, and not where they do not", (t) => {
  const idle = new ReadSlab();
  for (let i = 0; i < 100; i++) feed(idle, message(25_000, i, false), () => 1);
  t.true(idle.room().length <= 64 * 1024);
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 60_000 }), { maxLength: 10 }), (sizes) => {
      const busy = new ReadSlab();
      for (const size of sizes) feed(busy, message(size, 1, false), () => 0.7);
      feed(busy, Buffer.concat(Array.from({ length: 60 }, () => message(524_288, 1, false))), () => 1);
      t.true(busy.room().length > 2 * 1024 ** 2);
    }),
    { numRuns: 20 },
  );
});

test("what a small read brings does not keep the slab, and what a large one brings is not copied", (t) => {
  const slab = new ReadSlab();
  const [small] = feed(slab, message(6_000, 1, false), () => 1);
  t.is(small?.buffer.byteLength, small?.length);
  const [large] = feed(slab, message(40_000, 2, false), () => 1);
  t.true((large?.buffer.byteLength ?? 0) > (large?.length ?? 0));
});

test("messages of all sizes come whole through a real server, also those that somebody keeps", async (t) => {
  const server = await startNats();
  try {
    const [sender, receiver] = [await server.connect(), await server.connect()];
    const rng = createRng(5);
    const sent = Array.from({ length: 400 }, () => {
      const most = [20, 5000, 70_000, 512 * 1024][Math.floor(4 * rng.uniform())] as number;
      return Uint8Array.from({ length: Math.floor(most * rng.uniform()) }, (_, i) => (i * most) >> 3);
    });
    const kept: Uint8Array[] = [];
    const all = new Promise<void>((done) => {
      receiver.nc.subscribe("any", {
        max: sent.length,
        callback: (_error, { data }) => {
          if (kept.push(data) === sent.length) done();
        },
      });
    });
    await receiver.nc.flush();
    for (const bytes of sent) sender.nc.publish("any", bytes);
    await all;
    const digests = (messages: readonly Uint8Array[]): string[] => messages.map((each) => sha256Digest(each));
    t.deepEqual(digests(kept), digests(sent));
    const large = kept.filter(({ length }) => length > 128 * 1024);
    t.true(new Set(large.map(({ buffer }) => buffer)).size < large.length / 2, "they lie in slabs");
    await sender.close();
    await receiver.close();
  } finally {
    await server.stop();
  }
});

/** The memory of everything that the link's socket is given to write from now on. */
function watchWrites({ nc }: NatsLink): Set<ArrayBufferLike> {
  const written = new Set<ArrayBufferLike>();
  if (!(nc instanceof NatsConnectionImpl)) throw new Error("not the library's own connection");
  const { transport } = nc.protocol;
  if (!(transport instanceof NodeTransport)) throw new Error("not the library's own transport");
  const { socket } = transport;
  const write = socket.write.bind(socket);
  socket.write = ((frame: Uint8Array, done: () => void) => {
    written.add(frame.buffer);
    return write(frame, done);
  }) as typeof socket.write;
  return written;
}

test("a large message is written from where it lies, a small one is put together, also after a reconnect", async (t) => {
  const server = await startNats();
  try {
    const link = await server.connect();
    const received: Uint8Array[] = [];
    link.nc.subscribe("any", { callback: (_error, { data }) => received.push(data) });
    await link.nc.flush();
    const sizes = [10, 400_000, 20, 30, 31_000, 600_000, 700_000, 0, 5];
    for (const round of [1, 2]) {
      const written = watchWrites(link);
      const sent = sizes.map((size) => new Uint8Array(size).fill(round));
      for (const bytes of sent) link.nc.publish("any", bytes);
      await link.nc.flush();
      t.deepEqual(
        sent.filter(({ buffer }) => written.has(buffer)).map(({ length }) => length),
        sizes.filter((size) => size >= 400_000),
      );
      t.deepEqual(
        received.splice(0).map((bytes) => sha256Digest(bytes)),
        sent.map((bytes) => sha256Digest(bytes)),
      );
      if (round > 1) continue;
      const connected = new Promise<void>((done) => link.onReconnect(done));
      await link.nc.reconnect();
      await connected;
    }
    await link.close();
  } finally {
    await server.stop();
  }
});

test("what a new connection is given first is sent at once", async (t) => {
  const server = await startNats();
  try {
    const [sender, receiver] = [await server.connect(), await server.connect()];
    const first = new Promise<string>((done) => {
      receiver.nc.subscribe("any", { callback: (_error, message) => done(message.string()) });
    });
    await receiver.nc.flush();
    sender.nc.publish("any", "first");
    t.is(await Promise.race([first, new SystemClock().sleep(5_000).then(() => "nothing")]), "first");
    await sender.close();
    await receiver.close();
  } finally {
    await server.stop();
  }
});

test("what is published as the connection closes ends nothing else", async (t) => {
  const server = await startNats();
  try {
    const link = await server.connect();
    link.nc.publish("any", new Uint8Array(100_000));
    await link.nc.close();
    await new SystemClock().sleep(50);
    t.false(link.connected);
  } finally {
    await server.stop();
  }
});

test("a listener that fails at a message costs that message and no other", async (t) => {
  const server = await startNats();
  try {
    const link = await server.connect();
    const came: string[] = [];
    link.nc.subscribe("any", {
      callback: (_error, message) => {
        if (message.string() === "bad") throw new Error("not this one");
        came.push(message.string());
      },
    });
    for (const word of ["one", "bad", "two"]) link.nc.publish("any", word);
    await link.nc.flush();
    t.deepEqual(came, ["one", "two"]);
    await link.close();
  } finally {
    await server.stop();
  }
});

test("a server that is not there is told by its code", async (t) => {
  const server = await startNats();
  const link = await server.connect();
  await link.close();
  await server.stop();
  const { connect } = await import("#common/adapters/nats/transport.js");
  await t.throwsAsync(connect({ servers: [`127.0.0.1:${server.port}`], reconnect: false }), {
    code: "CONNECTION_REFUSED",
  });
});
