import test from "ava";
import fc from "fast-check";
import { LEAST_SLAB_BYTES, MOST_SLAB_BYTES, ReadSlab } from "#common/adapters/nats/read-slab.js";
import { SlabLedger } from "#common/adapters/nats/slab-ledger.js";

const SLAB_BYTES = 100;

test("memory is used again only when all that lies in it was read, and then it is", (t) => {
  const steps = fc.array(fc.record({ messages: fc.nat(3), strays: fc.nat(1), lag: fc.nat(8) }), { maxLength: 60 });
  fc.assert(
    fc.property(steps, (plan) => {
      const ledger = new SlabLedger(SLAB_BYTES);
      /** Messages that somebody reads, and the slabs later than theirs at which they are let go. */
      const held: { bytes: Uint8Array; value: number; until: number }[] = [];
      const memories = new Set<ArrayBufferLike>();
      let most = 0;
      plan.forEach(({ messages, strays, lag }, turn) => {
        const slab = ledger.take(SLAB_BYTES);
        t.is(slab.length, SLAB_BYTES);
        for (const { bytes, value } of held) t.true(bytes.every((byte) => byte === value));
        slab.fill(turn % 251);
        memories.add(slab.buffer);
        for (let i = 0; i < messages; i++) {
          const bytes = slab.subarray(10 * i, 10 * i + 10);
          ledger.hold(bytes);
          // More may come in the same place when all that came so far was read.
          if (i === 0 && lag % 2 === 0) ledger.release(bytes);
          else held.push({ bytes, value: turn % 251, until: turn + lag });
        }
        // Put together elsewhere.
        for (let i = 0; i < strays; i++) ledger.hold(new Uint8Array(5));
        most = Math.max(most, new Set(held.map(({ bytes }) => bytes.buffer)).size);
        for (const over of held.filter(({ until }) => until <= turn)) {
          ledger.release(over.bytes);
          held.splice(held.indexOf(over), 1);
        }
      });
      // Those in which something is held, those that are free, and those behind the last message.
      const quiet = plan.reduce(
        ({ run, longest }, { messages }) => ({
          run: messages > 0 ? 0 : run + 1,
          longest: Math.max(longest, messages > 0 ? 0 : run + 1),
        }),
        { run: 0, longest: 0 },
      ).longest;
      t.true(memories.size <= 2 * most + quiet + 2, `${memories.size} for ${most} held, ${quiet} quiet`);
    }),
    { numRuns: 300 },
  );
});

test("memory of another size is new each time", (t) => {
  const ledger = new SlabLedger(SLAB_BYTES);
  const small = ledger.take(10);
  ledger.hold(small);
  ledger.hold(ledger.take(SLAB_BYTES).subarray(0, 5));
  ledger.release(small);
  t.not(ledger.take(10).buffer, small.buffer);
  t.not(ledger.take(SLAB_BYTES).buffer, small.buffer);
});

test("no memory is let go: as much as was needed at once is there for the next", (t) => {
  const ledger = new SlabLedger(SLAB_BYTES);
  const read = (): Set<ArrayBufferLike> => {
    const messages = Array.from({ length: 50 }, () => ledger.take(SLAB_BYTES).subarray(0, 5));
    for (const bytes of messages) ledger.hold(bytes);
    for (const bytes of messages) ledger.release(bytes);
    return new Set(messages.map(({ buffer }) => buffer));
  };
  const before = read();
  const after = [...read(), ...read()];
  // The one in which a message came last may still be read into.
  t.true(after.filter((buffer) => !before.has(buffer)).length <= 1);
});

test("a slab in which nothing lies is given back, by the connection that read only small things into it", (t) => {
  const ledger = new SlabLedger(MOST_SLAB_BYTES);
  const slab = new ReadSlab(ledger);
  const memories = new Set<ArrayBufferLike>();
  const feed = (stream: Buffer, most: number): void => {
    for (let at = 0; at < stream.length;) {
      const room = slab.room();
      if (room.buffer.byteLength === MOST_SLAB_BYTES) memories.add(room.buffer);
      const count = Math.min(most, room.length, stream.length - at);
      room.set(stream.subarray(at, at + count));
      const taken = slab.take(count);
      if (2 * taken.length > LEAST_SLAB_BYTES) {
        const message = taken.subarray(0, 10);
        ledger.hold(message);
        ledger.release(message);
      }
      at += count;
    }
  };
  const message = (size: number): Buffer => Buffer.from(`MSG a 1 ${size}\r\n${"x".repeat(size)}\r\n`);
  feed(Buffer.concat(Array.from({ length: 20 }, () => message(1_000_000))), Infinity);
  t.is(slab.room().buffer.byteLength, MOST_SLAB_BYTES);
  const large = memories.size;
  // Cut in their midst, so that the slab fills up.
  feed(Buffer.concat(Array.from({ length: 5_000 }, () => message(10_000))), 20_000);
  t.true(memories.size <= large + 2, `${memories.size} slabs, ${large} before`);
});

test("a message that needs most of a slab is copied to another one once", (t) => {
  let taken = 0;
  const slab = new ReadSlab({
    take: (bytes) => {
      taken += 1;
      return new Uint8Array(bytes);
    },
  });
  const message = Buffer.from(`MSG a 1 3900000\r\n${"x".repeat(3_900_000)}\r\n`);
  for (let turn = 0; turn < 3; turn++) {
    if (turn === 1) taken = 0;
    for (let at = 0; at < message.length;) {
      const room = slab.room();
      const count = Math.min(16_384, room.length, message.length - at);
      room.set(message.subarray(at, at + count));
      slab.take(count);
      at += count;
    }
  }
  t.true(taken <= 4, `${taken} slabs for two messages`);
});
