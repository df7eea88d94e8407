import test from "ava";
import fc from "fast-check";
import { MOST_IN_FLIGHT, nextWindow, sendWindowed } from "#agent/outbox/window.js";

const seqOf = (index: number): number => 100 + index;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A log that answers in an order of its own, a disk that is slow at times, and what both have seen. */
function harness(choose: () => number, failing: ReadonlySet<number> = new Set()) {
  const waiting: { index: number; end: () => void }[] = [];
  const seen = { sent: [] as number[], noted: [] as number[], batches: 0, noting: 0, most: 0 };
  return {
    seen,
    send: (index: number): Promise<number> => {
      seen.sent.push(index);
      return new Promise((resolve, reject) => {
        const end = (): void => (failing.has(index) ? reject(new Error(`chunk ${index}`)) : resolve(seqOf(index)));
        waiting.push({ index, end });
        seen.most = Math.max(seen.most, waiting.length);
      });
    },
    note: async (seqs: readonly number[]): Promise<void> => {
      if (seen.noting++ > 0) throw new Error("two notes at once");
      await turn();
      seen.noted.push(...seqs);
      seen.batches++;
      seen.noting--;
    },
    /** Answers one request after the other until all is done. */
    drive: async <T>(sending: Promise<T>): Promise<T> => {
      const over = new AbortController();
      const ended = sending.finally(() => over.abort());
      ended.catch(() => undefined);
      for (;;) {
        for (let i = 0; i < 4; i++) await turn();
        if (over.signal.aborted) return ended;
        waiting.splice(choose() % Math.max(1, waiting.length), 1)[0]?.end();
      }
    },
  };
}

const base = { signal: new AbortController().signal, monotonicMs: () => 0 };

test("whatever the order of the answers, notes are in order and all sequences come back", async (t) => {
  const cases = fc.record({ count: fc.nat(30), known: fc.nat(30), picks: fc.array(fc.nat(), { minLength: 60 }) });
  await fc.assert(
    fc.asyncProperty(cases, async ({ count, known, picks }) => {
      const first = Math.min(known, count);
      const { seen, send, note, drive } = harness(() => picks.shift() ?? 0);
      const all = Array.from({ length: count }, (_, i) => seqOf(i));
      const sent = await drive(sendWindowed({ ...base, known: all.slice(0, first), count, send, note }));
      t.deepEqual(sent?.seqs, all);
      t.deepEqual([...all.slice(0, first), ...seen.noted], all.slice(0, sent?.noted));
      t.deepEqual(
        [...seen.sent].sort((a, b) => a - b),
        all.slice(first).map((_, i) => first + i),
      );
      t.true(seen.most <= MOST_IN_FLIGHT);
    }),
    { numRuns: 100 },
  );
});

test("a failure ends the sending; what was acknowledged before it is noted and the rest is not", async (t) => {
  const cases = fc.record({ failing: fc.nat(11), picks: fc.array(fc.nat(), { minLength: 30 }) });
  await fc.assert(
    fc.asyncProperty(cases, async ({ failing, picks }) => {
      const { seen, send, note, drive } = harness(() => picks.shift() ?? 0, new Set([failing]));
      const sending = drive(sendWindowed({ ...base, known: [], count: 12, send, note }));
      await t.throwsAsync(sending, { message: `chunk ${failing}` });
      t.true(seen.noted.length <= failing);
      t.deepEqual(
        seen.noted,
        seen.noted.map((_, i) => seqOf(i)),
      );
      t.is(seen.noting, 0, "nothing is written once it has ended");
    }),
  );
});

test("several chunks are under way, and their notes share a write", async (t) => {
  const { seen, send, note, drive } = harness(() => 0);
  await drive(sendWindowed({ ...base, known: [], count: 100, send, note }));
  t.is(seen.most, MOST_IN_FLIGHT);
  const burst = harness(() => 0);
  const slowNote = async (seqs: readonly number[]): Promise<void> => {
    for (let i = 0; i < 20; i++) await turn();
    await burst.note(seqs);
  };
  await burst.drive(sendWindowed({ ...base, known: [], count: 100, send: burst.send, note: slowNote }));
  t.true(burst.seen.batches < 50, `${burst.seen.batches} writes of 100 acknowledgements`);
});

test("quick acknowledgements are noted a few together, slow ones each at once, and none is forgotten at a failure", async (t) => {
  const quick = harness(() => 0);
  await quick.drive(sendWindowed({ ...base, known: [], count: 100, send: quick.send, note: quick.note }));
  t.true(quick.seen.batches <= 100 / 8, `${quick.seen.batches} writes`);
  t.true(quick.seen.noted.length >= 100 - 2 * 8);
  let nowMs = 0;
  const slow = harness(() => 0);
  const send = (index: number): Promise<number> => slow.send(index).finally(() => (nowMs += 250));
  await slow.drive(sendWindowed({ ...base, monotonicMs: () => nowMs, known: [], count: 10, send, note: slow.note }));
  t.true(slow.seen.batches >= 5, `${slow.seen.batches} writes`);
  t.true(slow.seen.noted.length >= 8);
  const failing = harness(() => 0, new Set([5]));
  await t.throwsAsync(
    failing.drive(sendWindowed({ ...base, known: [], count: 12, send: failing.send, note: failing.note })),
  );
  t.deepEqual(failing.seen.noted, [0, 1, 2, 3, 4].map(seqOf));
  // Also what came while a note was under way.
  const late = harness(() => 0, new Set([14]));
  const slowNote = async (seqs: readonly number[]): Promise<void> => {
    for (let i = 0; i < 60; i++) await turn();
    await late.note(seqs);
  };
  await t.throwsAsync(late.drive(sendWindowed({ ...base, known: [], count: 20, send: late.send, note: slowNote })));
  t.deepEqual(
    late.seen.noted,
    Array.from({ length: 14 }, (_, i) => seqOf(i)),
  );
});

test("on a slow link no chunk ever waits behind another, the first one neither", async (t) => {
  const { seen, send, note, drive } = harness(() => 0);
  let nowMs = 0;
  const slowly = (index: number): Promise<number> => send(index).finally(() => (nowMs += 8_000));
  await drive(sendWindowed({ ...base, monotonicMs: () => nowMs, known: [], count: 6, send: slowly, note }));
  t.is(seen.most, 1);
});

test("an abort returns at once, whatever is still under way, and nothing is noted afterwards", async (t) => {
  const controller = new AbortController();
  const { seen, send, note } = harness(() => 0);
  const sending = sendWindowed({ ...base, signal: controller.signal, known: [], count: 5, send, note });
  await turn();
  controller.abort();
  t.is(await sending, undefined);
  t.deepEqual(seen.noted, []);
});

test("a failing note ends the sending, and no note follows half a line", async (t) => {
  const { seen, send, drive } = harness(() => 0);
  let notes = 0;
  const note = async (): Promise<void> => {
    notes++;
    await turn();
    throw new Error("disk full");
  };
  await t.throwsAsync(drive(sendWindowed({ ...base, known: [], count: 20, send, note })), { message: "disk full" });
  t.is(notes, 1);
  t.true(seen.sent.length < 20);
});

test("the window grows with quick answers, halves with slow ones and stays between 1 and its limit", (t) => {
  t.is(nextWindow(2, 10), 3);
  t.is(nextWindow(MOST_IN_FLIGHT, 10), MOST_IN_FLIGHT);
  t.is(nextWindow(5, 1000), 5);
  t.is(nextWindow(5, 4000), 2);
  t.is(nextWindow(1, 60_000), 1);
});
