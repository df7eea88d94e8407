import test from "ava";
import fc from "fast-check";
import { ReadWindow } from "#common/adapters/nats/read-window.js";

/** Lets what can go on do so. */
const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test("shares are given in turn, and a large one in front is not overtaken by small ones", async (t) => {
  const window = new ReadWindow(10);
  const given: string[] = [];
  const take = async (name: string, bytes: number) => {
    const share = await window.take(bytes);
    given.push(name);
    return share;
  };
  const first = await take("first", 6);
  const rest = [take("large", 9), take("small", 1)];
  await settle();
  t.deepEqual(given, ["first"], "one byte would be free");
  first.free(5);
  await settle();
  t.deepEqual(given, ["first", "large"], "a share is given back in parts");
  first.free();
  await settle();
  t.deepEqual(given, ["first", "large", "small"]);
  for (const share of await Promise.all(rest)) share.free();
});

test("who wants more than there is gets all of it, and nothing is given back twice", async (t) => {
  const window = new ReadWindow(10);
  const all = await window.take(1000);
  let isNext = false;
  const next = window.take(1).then((share) => {
    isNext = true;
    return share;
  });
  await settle();
  t.false(isNext);
  all.free(4);
  all.free(1000);
  all.free();
  (await next).free();
  // Were there more than ten by now, both would get their share.
  await window.take(10);
  let isLast = false;
  void window.take(1).then(() => (isLast = true));
  await settle();
  t.false(isLast);
});

test("no more than the window is ever under way, and everybody gets a turn", async (t) => {
  const wish = fc.record({ bytes: fc.nat(14), first: fc.nat(14) });
  await fc.assert(
    fc.asyncProperty(fc.array(wish, { maxLength: 30 }), async (wishes) => {
      const window = new ReadWindow(10);
      let under = 0;
      let most = 0;
      const turns = wishes.map(async ({ bytes, first }) => {
        const share = await window.take(bytes);
        const held = Math.min(bytes, 10);
        under += held;
        most = Math.max(most, under);
        await settle();
        const part = Math.min(first, held);
        under -= part;
        share.free(first);
        await settle();
        under -= held - part;
        share.free();
      });
      await Promise.all(turns);
      return most <= 10 && under === 0;
    }),
  );
  t.pass();
});
