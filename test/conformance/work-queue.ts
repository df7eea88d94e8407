import type { TestFn } from "ava";
import type { WorkQueue } from "#common/ports/work-queue.js";

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what: () => boolean, ms = 8000): Promise<void> {
  const endMs = performance.now() + ms;
  while (!what() && performance.now() < endMs) await sleep(10);
}

/** Runs a queue that records its keys. */
function record(queue: WorkQueue, work: (key: string) => Promise<void> = () => Promise.resolve(), concurrency = 3) {
  const stop = new AbortController();
  const seen: string[] = [];
  let active = 0;
  let most = 0;
  const running = queue.run(
    async (key) => {
      seen.push(key);
      active += 1;
      most = Math.max(most, active);
      await work(key).finally(() => (active -= 1));
    },
    { concurrency, signal: stop.signal },
  );
  const end = async (): Promise<void> => {
    stop.abort();
    await running;
  };
  return { seen, end, most: () => most, active: () => active };
}

/** What every WorkQueue does, in real time. `open` makes a queue of a new name. */
export function workQueueConformance(test: TestFn, label: string, open: () => WorkQueue): void {
  const title = (what: string): string => `${label}: ${what}`;

  test.serial(title("a key waits at most once"), async (t) => {
    const queue = open();
    for (let index = 0; index < 5; index += 1) await queue.add("a");
    await queue.add("b");
    const { seen, end } = record(queue);
    await until(() => seen.length >= 2);
    await sleep(200);
    await end();
    t.deepEqual([...seen].sort(), ["a", "b"]);
    await queue.close();
  });

  test.serial(title("a key added while it is worked on runs once more, never twice at a time"), async (t) => {
    const queue = open();
    await queue.add("a");
    const { seen, end, most } = record(queue, () => sleep(200));
    await until(() => seen.length === 1);
    for (let index = 0; index < 4; index += 1) await queue.add("a");
    await until(() => seen.length === 2);
    await sleep(500);
    await end();
    t.deepEqual(seen, ["a", "a"]);
    t.is(most(), 1);
    await queue.close();
  });

  test.serial(title("a delayed add does not swallow an immediate one, and the shortest delay counts"), async (t) => {
    const queue = open();
    await queue.add("a", { delayMs: 60_000 });
    await queue.add("b", { delayMs: 60_000 });
    await queue.add("b", { delayMs: 300 });
    await queue.add("b", { delayMs: 50_000 });
    await queue.add("a");
    const { seen, end } = record(queue);
    const startMs = performance.now();
    await until(() => seen.includes("b"));
    await end();
    t.deepEqual(seen, ["a", "b"]);
    t.true(performance.now() - startMs < 40_000);
    await queue.close();
  });

  test.serial(title("a delay added from within the handler comes due"), async (t) => {
    const queue = open();
    await queue.add("a");
    const at: number[] = [];
    const { seen, end } = record(queue, async (key) => {
      at.push(performance.now());
      if (at.length < 3) await queue.add(key, { delayMs: 250 });
    });
    await until(() => seen.length === 3);
    await end();
    t.is(seen.length, 3);
    t.true((at[1] ?? 0) - (at[0] ?? 0) >= 240 && (at[2] ?? 0) - (at[1] ?? 0) >= 240);
    await queue.close();
  });

  test.serial(title("a handler that throws does not stop the queue"), async (t) => {
    const queue = open();
    const { seen, end } = record(queue, (key) =>
      key === "bad" ? Promise.reject(new Error("bad")) : Promise.resolve(),
    );
    for (const key of ["bad", "good"]) await queue.add(key);
    await until(() => seen.length === 2);
    await queue.add("bad");
    await until(() => seen.length === 3);
    await end();
    t.deepEqual([...seen].sort(), ["bad", "bad", "good"]);
    await queue.close();
  });

  test.serial(title("run settles after the last handler has ended"), async (t) => {
    const queue = open();
    let ended = false;
    const { seen, end, active } = record(queue, async () => {
      await sleep(300);
      ended = true;
    });
    await queue.add("slow");
    await until(() => seen.length === 1);
    await end();
    t.true(ended);
    t.is(active(), 0);
    await queue.close();
  });
}
