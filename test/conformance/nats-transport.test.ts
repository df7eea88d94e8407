import test from "ava";
import fc from "fast-check";
import { NatsConnectionImpl } from "nats/lib/nats-base-client/nats.js";
import { NodeTransport } from "nats/lib/src/node_transport.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { ReadSlab } from "#common/adapters/nats/transport.js";
import { createRng } from "#common/domain/rng.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { startNats } from "#test/support/servers.js";

/** What a socket does: fills some of the room, at most all of it. */
function fill(slab: ReadSlab, share: number, value: number): Uint8Array {
  const room = slab.room();
  const count = Math.max(1, Math.floor(share * room.length));
  room.fill(value, 0, count);
  return slab.take(count);
}

test("whatever comes in stays as it came in, and there is always room", (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof(fc.constant(1), fc.double({ min: 0, max: 1, noNaN: true })), { maxLength: 60 }),
      (shares) => {
        const slab = new ReadSlab();
        const taken = shares.map((share, i) => fill(slab, share, i + 1));
        t.true(slab.room().length > 0);
        taken.forEach((bytes, i) => {
          t.true(bytes.every((byte) => byte === i + 1));
        });
      },
    ),
    { numRuns: 40 },
  );
});

test("the room grows where reads fill it, up to 4 MiB, and not where they do not", (t) => {
  const idle = new ReadSlab();
  for (let i = 0; i < 100; i++) fill(idle, 0.9, i);
  t.true(idle.room().length <= 64 * 1024);
  const busy = new ReadSlab();
  for (let i = 0; i < 20; i++) fill(busy, 1, i);
  t.is(busy.room().length, 4 * 1024 ** 2);
});

test("whatever came before, the room grows as soon as reads fill it", (t) => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 10 }), (percents) => {
      const slab = new ReadSlab();
      percents.forEach((percent, i) => fill(slab, percent / 100, i));
      for (let i = 0; i < 20; i++) fill(slab, 1, i);
      t.is(slab.room().length, 4 * 1024 ** 2);
    }),
    { numRuns: 40 },
  );
});

test("what a small read brings does not keep the slab, and what a large one brings is not copied", (t) => {
  const slab = new ReadSlab();
  const small = fill(slab, 0.1, 1);
  t.is(small.buffer.byteLength, small.length);
  const large = fill(slab, 0.6, 2);
  t.true(large.buffer.byteLength > large.length);
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
